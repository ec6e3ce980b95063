"""Writes a wheel that holds one module: wheel.py FOLDER"""
import pathlib
import sys
import zipfile

name = pathlib.Path(sys.argv[1]) / "demo-1.0-py3-none-any.whl"
with zipfile.ZipFile(name, "w") as wheel:
    for path, text in {
        "demo.py": "print('hello from the wheel')\n",
        "demo-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        "demo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "demo-1.0.dist-info/RECORD": "demo.py,,\n",
    }.items():
        wheel.writestr(zipfile.ZipInfo(path, (2020, 1, 1, 0, 0, 0)), text)
