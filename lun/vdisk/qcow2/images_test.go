package qcow2_test

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun/vdisk"
	"github.com/cleave-san/cleave/lun/vdisk/vdisktest"
)

// TestImages: disks that were made elsewhere, with the hashes of their contents
// by qemu-img; see lun/testdata/README.md. A number after the name is an
// internal snapshot.
func TestImages(t *testing.T) {
	l := &lab{t, vdisktest.Unpack(t, filepath.Join("..", "..", "testdata"), "qcow2", "base.raw")}
	const base = "d0070f7eb52be7e5b2c2987d4dd60799998ad796d497c65ac93515924bd76e08"
	for name, want := range map[string]string{
		"v2": base, "v3": base, "c512": base, "c2m": base, "extl2": base, "rc1": base, "rc64-meta": base,
		"zlib": base, "zstd": base, "extdata": base,
		"overlay":       "219de741fc899fa5fdfe950050862e519573a4eb85f14b0b312fcd1e83ad5dad",
		"overlay-extl2": "fd3d93917091a5b59fc2213ac24e475163a8406abf0528a022cbe25274836ccf",
		"isnap":         "41b075a5a6e5180a54ae4f9f94aa0a53e43b02206c77d61a23dc0d89d26b4a17",
		"isnap#s1":      base,
		"isnap#s2":      "6faeb82c516add2ae983488ee5caa1ecac1b4edd3f4a84f879d4af5212895d37",
		"dirty":         "0b0efb29cdc287104bc43bd68bb5a4678b90c59258127447e30b2f0379b2ed00",
	} {
		t.Run(name, func(t *testing.T) {
			file, snapshot, _ := strings.Cut(name, "#")
			d := (&lab{t, l.dir}).mustOpen("qcow2-"+file+".qcow2", vdisk.Options{ReadOnly: true, Snapshot: snapshot})
			h := sha256.New()
			if _, err := io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(d, 0, d.Size()), make([]byte, 1<<20)); err != nil {
				t.Fatal(err)
			}
			if got := hex.EncodeToString(h.Sum(nil)); got != want {
				t.Errorf("sha256 %s, want %s", got, want)
			}
			if i := d.Info(); i.Dirty != (name == "dirty") || (len(i.Warnings) > 0) != i.Dirty {
				t.Errorf("%+v", i)
			}
		})
	}
}
