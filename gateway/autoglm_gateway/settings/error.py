"""What is wrong with what the gateway is told when it starts."""


class SettingsError(ValueError):
    """A sentence that names the setting, its value and what is allowed."""
