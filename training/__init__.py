"""What the learner needs to be safe, to be many, and to be taken home."""
