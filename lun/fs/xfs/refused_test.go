package xfs_test

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/fs"
	"github.com/cleave-san/cleave/lun/fs/fstest"
	"github.com/cleave-san/cleave/lun/fs/xfs"
)

// TestRefused: what isn't read is named, before anything else is believed.
func TestRefused(t *testing.T) {
	p := newPrototype(t, "proto_test.go")
	dev := made(t, p, "-m crc=1 -b size=4096 -i size=2048")
	super := make([]byte, 512)
	if _, err := dev.ReadAt(super, 0); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		change func([]byte)
		want   string
		dirty  bool
	}{
		{"needsrepair", func(b []byte) { b[219] |= 0x10 }, "needsrepair", false},
		{"metadir", func(b []byte) { b[218] |= 1 }, "metadir", false},
		{"unknown", func(b []byte) { b[216] |= 0x80 }, "bit 31", false},
		{"version", func(b []byte) { b[101] = b[101]&0xF0 | 6 }, "sb_versionnum", false},
		{"external log", func(b []byte) { clear(b[48:56]) }, "another device", true},
		{"size", func(b []byte) { binary.BigEndian.PutUint64(b[8:], 1<<40) }, "sb_dblocks", false},
		{"unfinished", func(b []byte) { b[126] = 1 }, "sb_inprogress", false},
		{"root", func(b []byte) { b[63]++ }, "root", false},
	} {
		b := append([]byte(nil), super...)
		c.change(b)
		m := &fstest.Mutant{Device: dev}
		for i := 0; i < len(b); i += 8 {
			m.Put(int64(i), [8]byte(b[i:]))
		}
		_, err := xfs.OpenUnsummed(m)
		var fe *lun.FormatError
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, fs.ErrDirty) != c.dirty || !c.dirty && !errors.As(err, &fe) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := xfs.Open(m); err == nil {
			t.Errorf("%s: opened", c.name)
		}
	}
	broken := &fstest.Mutant{Device: dev}
	broken.Put(108, [8]byte([]byte("no label")))
	if _, err := xfs.Open(broken); err == nil || !strings.Contains(err.Error(), "sb_crc") {
		t.Errorf("a wrong checksum: %v", err)
	}
}

// TestRealtime: a file on another device is described, and not read.
func TestRealtime(t *testing.T) {
	dev := made(t, newPrototype(t, "proto_test.go"), "-m crc=0 -i size=256")
	f, err := xfs.Open(dev)
	if err != nil {
		t.Fatal(err)
	}
	r, err := fs.Find(f, "file")
	if err != nil {
		t.Fatal(err)
	}
	// The inode is found by what it begins with, its owner and its group.
	b := make([]byte, 256)
	for at := int64(0); at < 1<<20; at += 256 {
		if _, err := dev.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		if b[0] != 'I' || b[1] != 'N' || b[11] != 5 {
			continue
		}
		b[91] |= 1
		m := &fstest.Mutant{Device: dev}
		m.Put(at+88, [8]byte(b[88:]))
		if f, err = xfs.Open(m); err != nil {
			t.Fatal(err)
		}
		if st, err := f.Stat(r); err != nil || st.Type != fs.Regular {
			t.Errorf("Stat: %+v, %v", st, err)
		}
		if _, err := f.Open(r); err == nil || !strings.Contains(err.Error(), "realtime") {
			t.Errorf("Open: %v", err)
		}
		fstest.Exercise(t, f)
		return
	}
	t.Fatal("the inode was not found")
}
