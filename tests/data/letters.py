"""A tokenizer whose ids can be read."""
import numpy as np


class Letters:
    """'a' is 1, 'z' 26; 27 ends a text, 0 pads, a space is 28 and ids from 29 are extra."""
    pad_id, eot_id = 0, 27

    def __init__(self, extra=0):
        self.extra, self.size, self.mask_id = extra, 29 + extra, 29 if extra else None
        self.special = np.isin(np.arange(self.size), [0, 27]) | (np.arange(self.size) >= 29)

    def encode(self, text):
        return [28 if letter == ' ' else ord(letter) - ord('a') + 1 for letter in text] + [self.eot_id]

    def __call__(self, texts, length):
        ids_NL = np.zeros((len(texts), length), np.int32)
        for row, text in zip(ids_NL, texts):
            ids = self.encode(text)[:length]
            row[:len(ids)] = ids
        return ids_NL

    def word_starts(self, ids_L):
        return np.concatenate([[True], ids_L[:-1] == 28]) | (ids_L == 28)
