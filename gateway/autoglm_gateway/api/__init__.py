"""OpenAI's API: requests, answers, and the document about them."""
