"""Former name of `whet.integrations`: any use of it names the new one."""


def __getattr__(name: str) -> object:
    raise ImportError("whet.compat is now whet.integrations: import from there")
