"""OpenAI's HTTP API in front of one or several servers: a thin, stateless layer over `autoglm_client.AsyncClient`."""
