"""The CPU: passes, products of spikes, bytes and an allocator in C++, compiled at first use."""
