"""How much a picture, a row or a file may ask for: the one table of limits.

They are far above what anybody needs, and low enough that nothing is built, compiled or filled up to them. What is
above is refused in one line, before any work.
"""

# Of prompts and other texts.
TEXT = 100_000  # characters
NESTING = 500  # brackets that are open at once
METADATA = 1 << 20  # characters of a text in a picture
SHOWN = 100  # characters of a value in a message

# Of pictures.
SIDE = 16_384  # pixels of a height or width
PIXELS = 1 << 26  # of a picture that is read or drawn: 8192 x 8192
ANNOTATED = 1 << 24  # pixels that an annotator looks at: 4096 x 4096
ENLARGED = 1 << 28  # of a picture that an upscaling model makes: 16384 x 16384
STEPS = 10_000  # of a sampler, and values of a list with one for each
BATCH = 4096  # pictures drawn at once
CALL = 10_000  # pictures that one call or command gives
NUMBER = 3.4e38  # the largest number of float32, nearly

# Of a run of `sdjax batch`.
IMAGES = 100_000  # pictures of a row
RUN = 10_000_000  # pictures of all rows
SHARD = 1_000_000  # pictures in a folder or shard

# Of a model's files.
COMPRESSION = 10  # times that a compressed pickle may grow

# Of a model's configuration.
TRAINED_TIMESTEPS = 100_000
WIDTH = 1 << 20  # channels, features, words and other sizes
LEVELS = 8  # resolutions of a UNet or VAE
LAYERS = 8  # blocks of a level
DEPTH = 128  # layers of a transformer
