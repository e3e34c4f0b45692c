"""Products in bfloat16 and int8: weights packed once (`layout`), rows narrowed panel by panel (`rows`), multiplied by
AVX-512 or AMX (`avx512`, `amx`), and finished while they are in the cache (`layer`). `calls` has what Python calls.
"""
