"""Captions and images that trip preprocessing, and what it takes to compare with other libraries."""

import io

import numpy as np
from PIL import Image

# Texts that ftfy and html.unescape leave alone but for letters that they exchange one by one.
PLAIN = [
    '', ' ', '  \t\n ', 'a photo of a cat', 'A Photo,  of\ta\nCAT.', 'word ' * 200, 'x' * 150, "don't you'll we've IT'S 's",
    '12345 3.14 1,050', 'wow! really?! (yes) [no] {maybe} #tag @you $5 50%', '😀 👩‍👩‍👧 🏳️‍🌈 flags 🇩🇪', 'cafe\u0301 A\u030angstro\u0308m',
    'café Ångström naïve', 'תמונה של חתול', 'صورة قطة', '一张猫的照片 東京タワー', 'Фото кота', 'Fußball in İstanbul',
    'non\u00a0breaking\u3000wide', 'zero\u200bwidth\u200djoiner', 'x\u2028y\u2029z\u0085w', 'ﬁne oﬃce', 'ＡＢＣ１２３',
    '“quoted” ‘it’s’',
    'a — b – c', '½ ² ™ © ℃', 'a < b > c & d', '\ufeffmark', 'tab\x0bfeed\x0cend', 'a\x00b\x07c\x7fd', 'ǅ ŉ ǰ', 'नमस्ते दुनिया', '각 ᄀ']
RUNS = '!!! ... ?!?!?!?! 1,000'
SIGMA = 'ΟΔΥΣΣΕΥΣ Σ σας'
MARKS = 'e\u0301\u0323' + '\u0301' * 9
UNDERSCORES = 'a_b snake_case __init__ _'
# Texts that they mend otherwise.
BROKEN = ['cafÃ© au lait', 'itâ€™s', '&lt;b&gt; caf&eacute; &amp;amp; tea', 'fish &amp; chips &#39;n&#39; &quot;peas&quot;',
          '&#x1F600; &hellip;']


def images():
    """{name: encoded image}."""
    rng = np.random.default_rng(0)

    def smooth(height, width, channels=3):
        """Structure at several scales, and some noise."""
        y, x = np.mgrid[:height, :width]
        waves = [128 + 60 * np.sin(x / (3 + 4 * c) + y / 11) + 40 * np.cos(y / (5 + c)) for c in range(channels)]
        return (np.stack(waves, -1) + rng.normal(0, 10, (height, width, channels))).clip(0, 255).astype(np.uint8)

    def encoded(image, kind='PNG', **more):
        file = io.BytesIO()
        image.save(file, kind, **more)
        return file.getvalue()

    sizes = dict(portrait=(93, 50), landscape=(61, 100), square=(48, 48), same=(32, 32), tiny=(3, 2), pixel=(1, 1), row=(1, 7),
                 column=(9, 1), odd=(67, 33), odder=(33, 70), large=(301, 403))
    found = {name: encoded(Image.fromarray(smooth(*size))) for name, size in sizes.items()}
    photo = Image.fromarray(smooth(57, 81))
    exif = photo.getexif()
    exif[0x0112] = 6
    alpha = Image.fromarray(np.concatenate([smooth(57, 81), smooth(57, 81, 1)], -1))
    return found | dict(
        gray=encoded(photo.convert('L')), jpeg=encoded(photo, 'JPEG'), gray_jpeg=encoded(photo.convert('L'), 'JPEG'),
        cmyk=encoded(photo.convert('CMYK'), 'JPEG'), turned=encoded(photo, 'JPEG', exif=exif), palette=encoded(photo.convert('P')),
        alpha=encoded(alpha), gray_alpha=encoded(alpha.convert('LA')), palette_alpha=encoded(alpha.quantize(64)),
        bits=encoded(photo.convert('1')))
