"""HPSv3: a language model that sees images and rates them."""
