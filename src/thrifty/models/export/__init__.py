"""Models in the files of other programs: GGUF, and folders as the packages of GPTQ and AWQ write them."""
