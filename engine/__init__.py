"""An inference server: tokens, pages and kernels. It knows nothing of tuning."""
