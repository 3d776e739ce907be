"""Plug-ins: one file each; see `blemish.registry`."""
