"""The room inspection."""
