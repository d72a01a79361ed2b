"""One module an experiment: `DESCRIPTION` and `run(context)`; `registry.MODULES` names them."""
