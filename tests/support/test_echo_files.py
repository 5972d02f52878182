"""`echo_files` has the functions that write the miniatures of the datasets."""

import echo_files as echo

from mllm.dataset.phantoms import echo_folders, heart


def test_the_support_module_is_the_generator_of_the_package():
    assert echo.write_echonet is echo_folders.write_echonet
    assert echo.write_camus is echo_folders.write_camus
    assert echo.draw_heart is heart.draw_heart
    assert all(name in vars(echo) for name in echo.__all__)
