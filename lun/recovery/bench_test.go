package recovery_test

import (
	"context"
	"testing"

	"github.com/cleave-san/cleave/lun/recovery"
)

// BenchmarkViewRead reads a whole view; BenchmarkSplitRead the split under it.
func BenchmarkViewRead(b *testing.B) {
	c := probe(b, images(b, "lvm-o1-thick-4k")...)
	v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer v.Close()
	buf := make([]byte, 1<<20)
	d := v.Devices[0]
	b.SetBytes(d.Size())
	for b.Loop() {
		for off := int64(0); off < d.Size(); off += int64(len(buf)) {
			if _, err := d.ReadAt(buf, off); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkSplitRead(b *testing.B) {
	d := images(b, "lvm-o1-thick-4k")[0].Device
	buf := make([]byte, 1<<20)
	b.SetBytes(d.Size())
	for b.Loop() {
		for off := int64(0); off < d.Size(); off += int64(len(buf)) {
			if _, err := d.ReadAt(buf, off); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkOpenView is from the devices to the view, overlay included.
func BenchmarkOpenView(b *testing.B) {
	s := images(b, "lvm-o1-thick-4k")
	for b.Loop() {
		v, err := recovery.OpenView(context.Background(), probe(b, s...), recovery.ViewOptions{Dir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		v.Close()
	}
}
