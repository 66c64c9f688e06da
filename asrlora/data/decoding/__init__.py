"""What an audio file is, how long it is by what decodes, and its samples."""
