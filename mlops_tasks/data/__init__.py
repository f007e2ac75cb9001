"""Problems: where they come from, how they become prompts, and how prompts become tokens."""
