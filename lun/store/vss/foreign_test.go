package vss_test

import (
	"bytes"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/store/vss"
)

// reader prints the content of one shadow copy by libvshadow's binding, which
// needs no FUSE.
const reader = `
import sys, pyvshadow
v = pyvshadow.volume()
v.open(sys.argv[1])
s = v.get_store(int(sys.argv[2]))
left = s.size
while left:
    b = s.read_buffer(min(left, 1 << 20))
    sys.stdout.buffer.write(b)
    left -= len(b)
`

// TestLibvshadow compares volumes of any shape with what libvshadow reads of them,
// block by block.
func TestLibvshadow(t *testing.T) {
	python := "/usr/bin/python3" // Debian's own, for which the binding is
	if err := exec.Command(python, "-c", "import pyvshadow").Run(); err != nil {
		t.Skipf("Debian's python3-libvshadow is not installed: %v", err)
	}
	volumes := 25
	if s := os.Getenv("CLEAVE_VSS_VOLUMES"); s != "" {
		volumes, _ = strconv.Atoi(s)
	}
	for seed := range uint64(volumes) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		b := build(rnd, 1+uint32(seed%2), 100+rnd.IntN(400), 1+rnd.IntN(5))
		path := filepath.Join(t.TempDir(), "volume")
		if err := os.WriteFile(path, b.b, 0o600); err != nil {
			t.Fatal(err)
		}
		v, err := vss.Read(luntest.ReadOnly(b.b))
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		for i, c := range v.Copies {
			s, err := v.Open(c)
			if err != nil {
				t.Fatalf("seed %d, vss%d: %v", seed, i+1, err)
			}
			got := make([]byte, s.Size())
			if _, err := io.ReadFull(io.NewSectionReader(s, 0, s.Size()), got); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(python, "-c", reader, path, strconv.Itoa(i))
			var say bytes.Buffer
			cmd.Stderr = &say
			want, err := cmd.Output()
			if err != nil {
				t.Fatalf("seed %d, vss%d: libvshadow: %v: %s", seed, i+1, err, say.Bytes())
			}
			if len(got) != len(want) {
				t.Fatalf("seed %d, vss%d: %d bytes, libvshadow has %d", seed, i+1, len(got), len(want))
			}
			for at := 0; at < len(got); at += 512 {
				if !bytes.Equal(got[at:at+512], want[at:at+512]) {
					t.Fatalf("seed %d, vss%d of %d: sector %d of block %d differs from what libvshadow reads", seed, i+1, len(v.Copies), at%16384/512, at/16384)
				}
			}
			luntest.CheckMap(t, s, 0, s.Size())
		}
	}
}
