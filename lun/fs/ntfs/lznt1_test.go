package ntfs

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

// TestDecompress: the example of [MS-XCA] 3.3, chunks as they are, ends before the
// unit is full, and streams that nobody made.
func TestDecompress(t *testing.T) {
	example := "38b08846232000204720410010a2470 1a0452044000845015079 00c04520052413 8805b4024a44ef0358028c09160148 4500be009e000401189000"
	in, err := hex.DecodeString(strings.ReplaceAll(example, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	want := "F# F# G A A G F# E D D E F# F# E E F# F# G A A G F# E D D E F# E D D E E F# D E F# G F# D E F# G F# E D E A F# F# G A A G F# E D D E F# E D D"
	out := bytes.Repeat([]byte{0xAA}, 2*chunk)
	if err := decompress(out, in); err != nil || string(bytes.TrimRight(out, "\x00")) != want {
		t.Errorf("%q, %v", bytes.TrimRight(out, "\x00"), err)
	}
	raw := append([]byte{0xFF, 0x3F}, bytes.Repeat([]byte("x"), chunk)...)
	if err := decompress(out, append(raw, in...)); err != nil || out[chunk-1] != 'x' || string(bytes.TrimRight(out[chunk:], "\x00")) != want {
		t.Errorf("a chunk as it is, and a compressed one: %q, %v", out[chunk:chunk+20], err)
	}
	long := []byte{0x04, 0xB0, 0x02, 'a', 0xFF, 0xFF, 0x00} // back further than there is
	if err := decompress(out, long); err != errBack {
		t.Error(err)
	}
	if err := decompress(out, []byte{0x03, 0xB0, 0x02, 'a', 0xFC, 0x0F}); err != nil || !bytes.Equal(out[:chunk], bytes.Repeat([]byte("a"), chunk)) {
		t.Error(err)
	}
	if err := decompress(out, []byte{0x06, 0xB0, 0x06, 'a', 0xFF, 0x0F, 0xFF, 0x0F, 0}); err != errLong {
		t.Error(err)
	}
	if err := decompress(out, []byte{0xFF, 0xBF, 0}); err != errChunk {
		t.Error(err)
	}
	if err := decompress(out, []byte{0x01, 0xB0, 0x01, 0}); err != errChunk {
		t.Error(err)
	}
}

func FuzzDecompress(f *testing.F) {
	f.Add([]byte{0x04, 0xB0, 0x02, 'a', 0xFF, 0xFF, 0x00})
	f.Add([]byte{0x06, 0xB0, 0x06, 'a', 0xFF, 0x0F, 0xFF, 0x0F, 0})
	out := make([]byte, maxUnit)
	f.Fuzz(func(t *testing.T, in []byte) {
		if err := decompress(out, in); err != nil && err != errBack && err != errLong && err != errChunk {
			t.Error(err)
		}
	})
}
