"""Benchmarks of tensorlib against peers, one program per question.

    python -m bench.peers install        build the peers' virtual environments (llama.cpp compiles: 10 to 15 minutes)
    python -m bench.generate             prompt and generation speed, peers x threads x formats
    python -m bench.start                import time, process start to first token, first start without a kernel cache
    python -m bench.memory               peak resident memory against the size of the file
    python -m bench.pair                 two Python threads decoding two models at once
    python -m bench.share                share of a decode that is spent outside native code
    python -m bench.ops                  single ops against PyTorch and NumPy: elementwise to attention and convolutions
    python -m bench.train                training steps against PyTorch: CNN, ResNet-18, GPT; time and peak memory
    python -m bench.gpu                  on a GPU: kernels against PyTorch, decoding against llama.cpp, one table
    python -m bench.tune matmul          on a GPU: tiles of matrix products for given shapes, kept per GPU
    python -m bench.perplexity           perplexity and greedy text against an independent NumPy Llama
    python -m bench.malformed            malformed files: rejected, accepted, crashed, by loader

Every program prints its table and writes the same rows, with machine and versions, to bench/results/<program>.csv.
Time on a quiet machine only: each one prints the load average it found and warns when something else was running.
"""
