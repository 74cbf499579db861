"""The data pipeline beside a bare loop, open_clip's loader and tf.data: images/s and CPU time per image, in one run.

    python tools/bench_data.py                                                     # ours and the bare loop
    python tools/bench_data.py --open-clip-python VENV/bin/python --tf-python VENV2/bin/python
    python tools/bench_data.py --only bare,bigvlm --processes 4 --workers 4        # 4 worker processes of 4 threads

JPEGs of 500 x 375 (quality 90, about 57 KB: smooth shapes, edges and grain) with captions are made in a temporary folder,
as tars of img2dataset's layout. Everybody makes batches of 224 px crops (90 to 100 % of the area, aspect 3/4 to 4/3) out of
those bytes: bicubic with antialiasing, and then, where the filter can be had, two-tap bilinear without.

* bare: simplejpeg, crop and Pillow's resize (OpenCV's for bilinear) over bytes in memory, in 1 thread and in as many as ours
* bigvlm: the stream of webdataset tars that the trainer reads, uint8, captions tokenised by SentencePiece
* open_clip: its own loader and training transform (float32, normalised), a worker per core, captions by the same SentencePiece
* tf.data: TFRecords of the same bytes, decode_and_crop_jpeg and tf.image.resize, uint8, captions by the same SentencePiece (not
  with --bpe)

Every competitor is a process of its own on the same cores, stopped while it is not its turn. CPU time is that of the process
and all its children, so that ratios hold on a busy machine too; the first turn of each does not count.
"""
import argparse
import io
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZE, LENGTH = 224, 64
AREA, RATIO = (.9, 1.), (3 / 4, 4 / 3)
_SHARDS = 8


# The images.

def write_tars(folder: Path, images: int) -> int:
    """The mean size of a JPEG in bytes."""
    import numpy as np
    rng, total = np.random.default_rng(0), 0
    words = [''.join(rng.choice(list('abcdefghijklmnoprstuvwy'), rng.integers(2, 9))) for _ in range(2000)]
    for shard in range(_SHARDS):
        with tarfile.open(folder / f'{shard:05}.tar', 'w') as tar:
            for number in range(images * shard // _SHARDS, images * (shard + 1) // _SHARDS):
                caption = ' '.join(words[int(len(words) * rng.random() ** 3)] for _ in range(rng.integers(5, 16)))
                jpeg = photo(rng)
                total += len(jpeg)
                record = dict(caption=caption, url=f'https://example.com/{number}.jpg', key=f'{number:09}', status='success', width=500,
                              height=375, original_width=1000, original_height=750, exif='{}')
                for ending, data in (('jpg', jpeg), ('txt', caption.encode()), ('json', json.dumps(record).encode())):
                    member = tarfile.TarInfo(f'{number:09}.{ending}')
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return total // images


def photo(rng) -> bytes:
    """A JPEG of smooth colours, a few sharp shapes and grain."""
    import numpy as np
    from PIL import Image, ImageDraw
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(coarse)
    for _ in range(12):
        box = sorted(rng.integers(0, 500, 2).tolist()), sorted(rng.integers(0, 375, 2).tolist())
        (draw.ellipse if rng.random() < .5 else draw.rectangle)((box[0][0], box[1][0], box[0][1], box[1][1]), width=3,
                                                               outline=tuple(rng.integers(0, 256, 3).tolist()))
    middle = np.asarray(Image.fromarray(rng.integers(0, 256, (94, 125), np.uint8)).resize((500, 375), Image.Resampling.BICUBIC), np.float32)
    fine = rng.normal(0, 3, (375, 500)).astype(np.float32)
    pixels = np.asarray(coarse, np.float32) + (.08 * (middle - 128) + fine)[..., None]
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
    return file.getvalue()


def members(folder: Path, ending: str) -> list[bytes]:
    found = []
    for path in sorted(folder.glob('*.tar')):
        with tarfile.open(path) as tar:
            found += [tar.extractfile(m).read() for m in tar if m.name.endswith(ending)]
    return found


# The competitors: each makes itself ready and gives (facts, next), where next() -> (images in a batch, the mean pixel if asked).

def bare(options):
    """The least that the job takes: no reading, no captions, no batches."""
    import numpy as np
    import simplejpeg
    from PIL import Image
    jpegs, share = members(options.folder, '.jpg'), max(1, options.batch // options.threads)
    if options.filter == 'bilinear':
        import cv2
        cv2.setNumThreads(1)

    def one(data: bytes, rng: random.Random):
        image_HWC = simplejpeg.decode_jpeg(data, 'RGB')
        left, top, right, bottom = crop_box(rng, *image_HWC.shape[:2])
        region_HWC = image_HWC[top:bottom, left:right]
        if options.filter == 'bilinear':
            return cv2.resize(region_HWC, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
        return np.asarray(Image.fromarray(region_HWC).resize((SIZE, SIZE), Image.Resampling.BICUBIC))

    def some(seed: int, count: int, means: list) -> None:
        rng = random.Random(seed)
        for _ in range(count):
            image_HWC = one(rng.choice(jpegs), rng)
        means.append(float(image_HWC.mean()))

    def step(seed=[0]):
        means: list[float] = []
        threads = [threading.Thread(target=some, args=(options.threads * seed[0] + i, share, means)) for i in range(options.threads)]
        seed[0] += 1
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return share * options.threads, lambda: means[0]
    return f'simplejpeg {simplejpeg.__version__}, Pillow', step


def crop_box(rng: random.Random, height: int, width: int) -> tuple[int, int, int, int]:
    """Torchvision's random-resized crop, in plain Python."""
    for _ in range(10):
        area, aspect = height * width * rng.uniform(*AREA), 2.718281828 ** rng.uniform(-.2876820724, .2876820724)
        w, h = round((area * aspect) ** .5), round((area / aspect) ** .5)
        if w <= width and h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    w = min(width, round(height * RATIO[1]))
    return (width - w) // 2, 0, (width - w) // 2 + w, height


def bigvlm(options):
    """What the trainer reads from, and how."""
    sys.path.insert(0, str(ROOT))
    os.environ['BIGVLM_CACHE'] = str(options.folder / 'cache')
    from bigvlm.data.pipeline import Data, Stream
    resample = dict(method='bilinear', antialias=False) if options.filter == 'bilinear' else dict(method='bicubic')
    tokenizer = (dict(name='clip_bpe', model=options.bpe) if options.bpe
                 else dict(name='sentencepiece', model=str(options.folder / 'captions.model')))
    ops = (dict(name='decode'), dict(name='random_resized_crop', size=SIZE, area=AREA, ratio=RATIO, **resample),
           dict(name='tokenize', length=LENGTH), dict(name='keep', keys=('image', 'text')))
    data = Data(dict(seed=0, batch=options.batch, kinds=dict(pairs=dict(data='train', weight=1)), tokenizers=dict(text=tokenizer),
                     data=dict(train=dict(source=dict(name='webdataset', files=str(options.folder / '*.tar')), ops=ops))))
    stream = Stream(data.draws('pairs', 0, (0,)), options.batch, workers=options.threads, processes=options.processes,
                    slow_s=1e9, hang_s=None)

    def step():
        batch = next(stream)
        return len(batch['image']), lambda: float(batch['image'].mean())
    return 'bigvlm', step


def open_clip(options):
    """get_wds_dataset of open_clip's own training code, resampling shards as its large runs do."""
    import torch
    if torch.version.cuda is None:  # a CUDA build of torchvision beside it lacks these, and refuses to be imported
        options.keep = torch.library.Library('torchvision', 'DEF')
        for operator in ('nms', 'qnms'):
            options.keep.define(f'{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
    import open_clip as library
    from open_clip_train.data import get_wds_dataset
    torch.set_num_threads(1)
    transform = library.image_transform(SIZE, is_train=True, aug_cfg=dict(scale=AREA))  # its ratio is ours
    arguments = argparse.Namespace(
        train_data=str(options.folder / f'{{00000..{_SHARDS - 1:05}}}.tar'), train_num_samples=10 ** 9, dataset_resampled=True, seed=0,
        train_data_upsampling_factors=None, batch_size=options.batch, workers=options.threads, world_size=1)
    tokenizer = library.tokenizer.SimpleTokenizer(context_length=LENGTH) if options.bpe else sentences(options, torch)
    batches = iter(get_wds_dataset(arguments, transform, is_train=True, tokenizer=tokenizer).dataloader)
    mean, std = torch.tensor(library.OPENAI_DATASET_MEAN), torch.tensor(library.OPENAI_DATASET_STD)

    def step():
        images, _ = next(batches)
        return len(images), lambda: float((images.mean((0, 2, 3)) * std + mean).mean() * 255)
    return f'open_clip {library.__version__}, torch {torch.__version__}', step


def sentences(options, torch):
    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(model_file=str(options.folder / 'captions.model'))

    def tokenizer(text: str):
        found = torch.zeros(1, LENGTH, dtype=torch.long)
        ids = [*model.encode(text), model.eos_id()][:LENGTH]
        found[0, :len(ids)] = torch.tensor(ids)
        return found
    return tokenizer


def token_rows(options):
    import numpy as np
    import sentencepiece
    model = sentencepiece.SentencePieceProcessor(model_file=str(options.folder / 'captions.model'))

    def tokens(captions):
        found = np.zeros((len(captions), LENGTH), np.int32)
        for row, caption in zip(found, captions):
            ids = [*model.encode(caption.decode()), model.eos_id()][:LENGTH]
            row[:len(ids)] = ids
        return found
    return tokens


def tf_data(options):
    os.environ.update(TF_CPP_MIN_LOG_LEVEL='3', CUDA_VISIBLE_DEVICES='')
    import tensorflow as tf
    tf.config.threading.set_intra_op_parallelism_threads(1)
    path = str(options.folder / 'images.tfrecord')
    if not os.path.exists(path):
        with tf.io.TFRecordWriter(path) as writer:
            for jpeg, caption in zip(members(options.folder, '.jpg'), members(options.folder, '.txt')):
                feature = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                           for key, value in (('image', jpeg), ('caption', caption))}
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())

    def example(record):
        found = tf.io.parse_single_example(record, {key: tf.io.FixedLenFeature([], tf.string) for key in ('image', 'caption')})
        start, extent, _ = tf.image.sample_distorted_bounding_box(
            tf.io.extract_jpeg_shape(found['image']), tf.zeros((1, 0, 4)), min_object_covered=0., aspect_ratio_range=RATIO,
            area_range=AREA, max_attempts=10, use_image_if_no_bounding_boxes=True)
        image = tf.image.decode_and_crop_jpeg(found['image'], tf.concat([start[:2], extent[:2]], 0), channels=3)
        image = tf.image.resize(image, (SIZE, SIZE), options.filter, antialias=options.filter == 'bicubic')
        return tf.cast(tf.clip_by_value(tf.round(image), 0., 255.), tf.uint8), found['caption']
    threads = tf.data.Options()
    threads.threading.private_threadpool_size = options.threads
    found = tf.data.TFRecordDataset(path).shuffle(1000).repeat().map(example, tf.data.AUTOTUNE, deterministic=True)
    found = found.batch(options.batch, drop_remainder=True)
    if not options.bpe:
        tokens = token_rows(options)
        found = found.map(lambda image, caption: (image, tf.numpy_function(tokens, [caption], tf.int32)))
    batches = found.prefetch(2).with_options(threads).as_numpy_iterator()

    def step():
        images, _ = next(batches)
        return len(images), lambda: float(images.mean())
    return f'tensorflow {tf.__version__}', step


MAKERS = {make.__name__: make for make in (bare, bigvlm, open_clip, tf_data)}


# Taking turns.

def serve(asked: dict) -> None:
    """A competitor's process: answers numbers of seconds with what it made in them."""
    answers, options = os.fdopen(os.dup(1), 'w'), argparse.Namespace(**asked)
    os.dup2(2, 1)  # whatever else is printed
    options.folder = Path(options.folder)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:options.cores])

    def say(**answer) -> None:
        print(json.dumps(answer), file=answers, flush=True)
    try:
        facts, step = MAKERS[options.name](options)
        say(facts=facts, mean=step()[1]())
        for seconds in map(float, sys.stdin):
            images, began, cpu = 0, time.perf_counter(), cpu_s(os.getpid())
            while time.perf_counter() < began + seconds:
                images += step()[0]
            say(images=images, wall=time.perf_counter() - began, cpu=cpu_s(os.getpid()) - cpu)
    except Exception as error:  # whatever it is, the parent reports it
        say(error=f'{type(error).__name__}: {(str(error).splitlines() or [""])[-1]}')
    os._exit(0)  # threads and workers too: these end when their pipes do


def cpu_s(root: int) -> float:
    """CPU seconds that a process and all below it have used; children that are still alive too, unlike os.times."""
    found, children = {}, {}
    for entry in os.listdir('/proc'):
        if entry.isdigit():
            try:
                fields = Path(f'/proc/{entry}/stat').read_text().rpartition(')')[2].split()
            except OSError:
                continue
            found[int(entry)] = sum(map(int, fields[11:15]))  # user, system, and both of children that have ended
            children.setdefault(int(fields[1]), []).append(int(entry))
    todo, ticks = [root], 0
    while todo:
        pid = todo.pop()
        ticks += found.get(pid, 0)
        todo += children.get(pid, [])
    return ticks / os.sysconf('SC_CLK_TCK')


class Competitor:
    """A process that has made a batch and then takes turns."""

    def __init__(self, label: str, python: str, **asked):
        self.label, self.filter, self.turns = label, asked['filter'], []
        self.process = subprocess.Popen([python, __file__, '--serve', json.dumps(asked)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, start_new_session=True)
        ready = self._answer()
        self.facts, self.mean = ready['facts'], ready['mean']
        self._signal(signal.SIGSTOP)

    def _answer(self) -> dict:
        answer = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        if 'error' in answer:
            raise RuntimeError(answer['error'])
        return answer

    def turn(self, seconds: float, count: bool) -> None:
        self._signal(signal.SIGCONT)
        print(seconds, file=self.process.stdin, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        if count:
            self.turns.append((answer['images'] / answer['wall'], 1e3 * answer['cpu'] / answer['images']))

    def _signal(self, number: int) -> None:
        os.killpg(self.process.pid, number)

    def stop(self) -> None:
        self._signal(signal.SIGKILL)
        self.process.wait()

    def per_cpu(self, other: 'Competitor') -> list[float]:
        """Images per CPU second over the other's, turn by turn."""
        return [theirs / ours for (_, ours), (_, theirs) in zip(self.turns, other.turns)]


def entrants(options) -> list[tuple[str, str, dict]]:
    """(label, interpreter, what is asked of it) of all that may run."""
    here, both = sys.executable, {'bare': ('bicubic', 'bilinear'), 'open_clip': ('bicubic',)}
    found = []
    for filter in options.filters:
        for name, python in (('bare', here), ('bigvlm', here), ('open_clip', options.open_clip_python), ('tf_data', options.tf_python)):
            if name not in options.only or filter not in both.get(name, ('bicubic', 'bilinear')):
                continue
            settings = [dict(threads=options.workers, processes=0)]
            if name == 'bare' and options.workers > 1:
                settings.insert(0, dict(threads=1, processes=0))
            if name == 'bigvlm' and options.processes:
                settings.append(dict(threads=max(1, options.workers // options.processes), processes=options.processes))
            for setting in settings:
                unit = 'workers' if name == 'open_clip' else f'processes x {setting["threads"]}' if setting['processes'] else 'threads'
                label = f'{name.replace("_", ".") if name == "tf_data" else name}, {setting["processes"] or setting["threads"]} {unit}'
                found.append((label, python, dict(setting, name=name, filter=filter, folder=str(options.folder), batch=options.batch,
                                                  cores=options.cores, bpe=options.bpe)))
    return found


def race(options) -> list[Competitor]:
    competitors = []
    for label, python, asked in entrants(options):
        try:
            competitors.append(Competitor(label, python, **asked))
            print(f'{label}, {asked["filter"]}: ready ({competitors[-1].facts})', flush=True)
        except RuntimeError as error:
            print(f'{label}, {asked["filter"]}: does not run here ({error})', flush=True)
    try:
        for turn in range(options.rounds + 1):
            for competitor in competitors:
                competitor.turn(options.seconds, count=turn > 0)
    finally:
        for competitor in competitors:
            competitor.stop()
    return competitors


def report(options, competitors: list[Competitor], size: int) -> None:
    print(f'\n{options.images} JPEGs of {size / 1e3:.0f} KB, batches of {options.batch} at {SIZE} px, {options.cores} cores; '
          f'{options.rounds} turns of {options.seconds:g} s; median (min to max)')
    for filter, words in (('bicubic', 'bicubic, antialiased'), ('bilinear', 'bilinear, not antialiased')):
        mine = [c for c in competitors if c.filter == filter]
        ours = [c for c in mine if c.label.startswith('bigvlm')]
        if not mine:
            continue
        print(f'\n{words:36} {"images/s":>22} {"CPU ms/image":>20} ' + ' '.join(f'{"per CPU-s, " + o.label:>34}' for o in ours))
        for c in mine:
            rates, costs = zip(*c.turns)
            ratios = ' '.join(f'{spread(o.per_cpu(c), ".2f"):>34}' for o in ours)
            print(f'{c.label:36} {spread(rates, ".0f"):>22} {spread(costs, ".2f"):>20} {ratios}   mean pixel {c.mean:.0f}')


def spread(values, digits: str) -> str:
    return f'{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})'


def options_of(argv):
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=1024)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--seconds', type=float, default=5., help='of one turn')
    parser.add_argument('--rounds', type=int, default=5, help='turns of each competitor that count')
    parser.add_argument('--cores', type=int, default=cores)
    parser.add_argument('--workers', type=int, help="threads (open_clip's: processes) of everybody; default: a core each")
    parser.add_argument('--processes', type=int, default=0, help='ours also in so many worker processes, which share the threads')
    parser.add_argument('--only', default=','.join(MAKERS), help=f'of {", ".join(MAKERS)}')
    parser.add_argument('--filters', nargs='*', choices=('bicubic', 'bilinear'), default=('bicubic', 'bilinear'))
    parser.add_argument('--bpe', default='', help="CLIP's bpe_simple_vocab_16e6.txt.gz: its tokenizer instead of SentencePiece")
    parser.add_argument('--open-clip-python', default=sys.executable,
                        help='an interpreter that has open_clip_torch, the webdataset it asks for (<= 0.2.86), and pandas')
    parser.add_argument('--tf-python', default=sys.executable, help='an interpreter that has tensorflow')
    parser.add_argument('--serve', help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.only = options.only.split(',')
    if unknown := set(options.only) - MAKERS.keys():
        parser.error(f'--only: {min(unknown)} is none of {", ".join(MAKERS)}')
    options.workers = options.workers or options.cores
    return options


def main(argv=None):
    options = options_of(argv)
    if options.serve:
        serve(json.loads(options.serve))
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        size = write_tars(options.folder, options.images)
        from bigvlm.data.tokenizers import sentencepiece
        captions = [data.decode() for data in members(options.folder, '.txt')]
        sentencepiece.train(captions, 1000, options.folder / 'captions.model')
        report(options, race(options), size)


if __name__ == '__main__':
    main()
