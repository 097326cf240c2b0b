"""The transformer: read config, sites, attention, mlp, block, transformer in that order."""
