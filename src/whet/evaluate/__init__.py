"""Many prompts, many methods: what sharpening is worth, with intervals."""
