"""The Triton kernels and how they are launched; imported only where Triton runs."""
