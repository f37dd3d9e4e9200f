import pytest

# A helper's assertion that fails shows its values, as a test's does.
pytest.register_assert_rewrite("tests.check.command")
