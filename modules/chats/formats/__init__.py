"""The forms in which chats come as files, one module each: `fits` and `read`; those that they go out in have `NAME`, `SUFFIX`, `write`."""
