"""Device meshes, processes, prefetching and host memory."""
