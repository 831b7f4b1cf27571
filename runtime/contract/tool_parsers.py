"""
Names of the parsers of calls, as the configuration and the fleet file have them.  Pure.
"""

from typing import Literal

GLM, HERMES, LLAMA3_JSON, JSON = "glm", "hermes", "llama3_json", "json"
AUTO, NONE = "auto", "none"
ToolParserName = Literal["auto", "none", "glm", "hermes", "llama3_json", "json"]
