"""Looking for a better recipe: a space of settings, one study shared by several workers, and when its best is believed to be better."""
