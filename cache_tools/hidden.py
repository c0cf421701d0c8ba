
CHUNK_COLUMNS = 32


class Transform:
    pass


def calibrate_relative(states):
    raise NotImplementedError


def transform_bytes(t):
    raise NotImplementedError


def transform_from_bytes(b):
    raise NotImplementedError


def choose_step(*a):
    raise NotImplementedError


def encode(*a):
    raise NotImplementedError


def decode(*a):
    raise NotImplementedError


def relative_error(a, b):
    raise NotImplementedError
