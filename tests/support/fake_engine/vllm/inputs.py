def TokensPrompt(*, prompt_token_ids):  # noqa: N802
    return {"prompt_token_ids": prompt_token_ids}
