"""Rebuilds the embedded data set `emoji` from four pinned npm packages.

  python tools/prepare_emoji.py [--cache DIR] [--out DIR] [--check]

The packages are fetched with `npm pack` into the cache folder unless they lie
there already. `--check` writes nothing and fails unless every file would come
out byte for byte as it is in `--out`. Needs Pillow; the bytes are those of
Pillow 13.0.0 with libwebp 1.6.0, another encoder may differ in a few of them.

What it keeps: every concept that all three vendors draw, matched by code
points without the variation selector U+FE0F and without skin tones, unless a
vendor draws it byte for byte like an earlier concept (Twemoji's families), for
then no image can tell the two apart. Images are composited on white (alpha
makes them 2.4 times larger) and stored as 64 px WebP.
"""

import argparse
import io
import json
import lzma
import pathlib
import subprocess
import sys
import tarfile

from PIL import Image, features

PACKAGES = {
  "noto": ("emoji-datasource-google", "16.0.0"),
  "twemoji": ("emoji-datasource-twitter", "16.0.0"),
  "fluent": ("@lobehub/fluent-emoji-3d", "1.1.0"),
  "text": ("emojibase-data", "17.0.0"),
}
FOLDERS = {
  "noto": "package/img/google/64/",
  "twemoji": "package/img/twitter/64/",
  "fluent": "package/assets/",
}
LOCALES = "en da de es fi fr hi hu it ja ko nl pl pt ru sv th uk vi zh".split()
SIZE = 64
QUALITY = 80

PERSONS = {"1f466", "1f467", "1f468", "1f469", "1f9d1", "1f9d2"}
SIGNS = {"2640", "2642", "27a1"}  # female, male, facing right
FAMILY = "1f46a"


def tarball(package: str, version: str, cache: pathlib.Path) -> pathlib.Path:
  """Returns the package's tarball, fetched into the cache if need be."""
  stem = package.replace("@", "").replace("/", "-")
  path = cache / f"{stem}-{version}.tgz"
  if not path.exists():
    cache.mkdir(parents=True, exist_ok=True)
    command = ["npm", "pack", f"{package}@{version}"]
    subprocess.run(command, cwd=cache, check=True)
  return path


def code(hexcode: str) -> str:
  """Returns a hexcode in lower case without variation selectors."""
  return hexcode.lower().replace("-fe0f", "")


def base(hexcode: str) -> str:
  """Returns the code point that variants of one concept share.

  Man, woman and person with the same object share the object; sequences of
  persons only are families; other sequences share their first code point.
  Flags and keycaps are no variants of each other.
  """
  parts = hexcode.split("-200d-")
  heads = [part.split("-")[0] for part in parts]
  if heads[0].startswith("1f1") and len(heads[0]) == 5:
    return hexcode
  if len(parts) == 1:
    return heads[0]
  rest = [h for h in heads if h not in PERSONS | SIGNS]
  return rest[0] if rest else FAMILY


def read(tar: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
  """Returns the content of a file in the tarball."""
  file = tar.extractfile(member)
  if file is None:
    raise SystemExit(f"{member} in {tar.name} is no file")
  return file.read()


def images(path: pathlib.Path, folder: str) -> dict[str, bytes]:
  """Returns {hexcode: the vendor's file}."""
  found = {}
  with tarfile.open(path) as tar:
    for member in tar:
      if member.name.startswith(folder):
        name = member.name.removeprefix(folder).rsplit(".", 1)[0]
        found[code(name)] = read(tar, member)
  return found


def texts(path: pathlib.Path) -> tuple[list[dict], dict[str, dict], dict]:
  """Returns (English records, {locale: {hexcode: record}}, group names)."""
  locales = {}
  with tarfile.open(path) as tar:
    for locale in LOCALES:
      records = json.loads(read(tar, f"package/{locale}/data.json"))
      locales[locale] = {code(r["hexcode"]): r for r in records}
    messages = json.loads(read(tar, "package/en/messages.json"))
  names = {
    kind: {m["order"]: m["key"] for m in messages[kind]}
    for kind in ("groups", "subgroups")
  }
  english = [r for r in locales["en"].values() if "group" in r]
  return sorted(english, key=lambda r: r["order"]), locales, names


def webp(data: bytes) -> bytes:
  """Returns the picture on white as a 64 px WebP."""
  picture = Image.open(io.BytesIO(data)).convert("RGBA")
  white = Image.new("RGBA", picture.size, "white")
  picture = Image.alpha_composite(white, picture).convert("RGB")
  if picture.size != (SIZE, SIZE):
    picture = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
  out = io.BytesIO()
  picture.save(out, "WEBP", quality=QUALITY, method=6)
  return out.getvalue()


def make(cache: pathlib.Path) -> dict[str, bytes]:
  """Returns {file name: bytes} of the assets this tool makes."""
  paths = {k: tarball(*package, cache) for k, package in PACKAGES.items()}
  vendors = {v: images(paths[v], folder) for v, folder in FOLDERS.items()}
  english, locales, names = texts(paths["text"])

  kept, seen = [], {vendor: set() for vendor in vendors}
  for record in english:
    key = code(record["hexcode"])
    if not all(key in drawn for drawn in vendors.values()):
      continue
    if any(vendors[v][key] in seen[v] for v in vendors):
      continue
    for vendor, drawn in vendors.items():
      seen[vendor].add(drawn[key])
    kept.append(record)

  keys = [code(record["hexcode"]) for record in kept]
  files, sizes = {}, {}
  for vendor, drawn in vendors.items():
    encoded = [webp(drawn[key]) for key in keys]
    files[f"{vendor}.bin"] = b"".join(encoded)
    sizes[vendor] = [len(e) for e in encoded]
  table = {
    "packages": [f"{name}@{version}" for name, version in PACKAGES.values()],
    "concepts": keys,
    "bases": [base(key) for key in keys],
    "groups": [names["groups"][r["group"]] for r in kept],
    "subgroups": [names["subgroups"][r["subgroup"]] for r in kept],
    "sizes": sizes,
    "locales": {
      locale: {
        "names": [records[key]["label"] for key in keys],
        "tags": [records[key].get("tags", []) for key in keys],
      }
      for locale, records in locales.items()
    },
  }
  text = json.dumps(table, ensure_ascii=False, separators=(",", ":"))
  files["table.json.xz"] = lzma.compress(text.encode(), preset=9)
  return files


def main() -> int:
  root = pathlib.Path(__file__).resolve().parent.parent
  parser = argparse.ArgumentParser(description="Rebuild the emoji assets.")
  parser.add_argument("--cache", type=pathlib.Path, default=root / "build/npm")
  parser.add_argument(
    "--out", type=pathlib.Path, default=root / "mmjax/data/assets/emoji"
  )
  parser.add_argument("--check", action="store_true")
  arguments = parser.parse_args()
  print(f"libwebp {features.version('webp')}")
  wrong = []
  for name, data in make(arguments.cache).items():
    path = arguments.out / name
    same = path.exists() and path.read_bytes() == data
    print(f"{name}: {len(data):,} bytes, {'same' if same else 'changed'}")
    if not same:
      wrong.append(name)
      if not arguments.check:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
  return int(arguments.check and bool(wrong))


if __name__ == "__main__":
  sys.exit(main())
