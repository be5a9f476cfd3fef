"""The embedded networks: cards (JSON), weights and source statistics (safetensors)."""
