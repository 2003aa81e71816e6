"""What `python -m benchmarks.gpu_bench` measures, a file a subject; docs/gpu.md says what each figure means."""
