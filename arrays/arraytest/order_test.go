package arraytest

import (
	"bytes"
	"io"
	"testing"

	"github.com/cleave-san/cleave/lun"
)

// mem is a device in memory, of a fixed size.
type mem []byte

func (m mem) ReadAt(p []byte, off int64) (int, error)  { return copy(p, m[off:]), nil }
func (m mem) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }
func (m mem) Size() int64                              { return int64(len(m)) }
func (m mem) Sync() error                              { return nil }

// At every moment a stream's writes are a prefix; leave any one write out, or
// let one volume be older than the others, and they are not.
func TestStreamCheck(t *testing.T) {
	const volumes, writes = 3, 60
	s := Stream{ID: 7, Base: 512, Size: 1024, Slots: 4}
	fresh := func() (devs []lun.Device, readers []io.ReaderAt) {
		for range volumes {
			m := make(mem, s.Base+s.Area())
			devs, readers = append(devs, m), append(readers, m)
		}
		return devs, readers
	}
	buf := make([]byte, s.Size)
	devs, readers := fresh()
	for k := uint64(1); k <= writes; k++ {
		if err := s.Write(devs, k, buf); err != nil {
			t.Fatal(err)
		}
		if last, err := s.Check(readers); err != nil || last != k {
			t.Fatalf("after write %d: %d, %v", k, last, err)
		}
	}
	// A part of the next one may be there.
	v, off := s.place(writes+1, volumes)
	s.fill(buf, writes+1)
	devs[v].WriteAt(buf[:512], off)
	if last, err := s.Check(readers); err != nil || last != writes+1 {
		t.Fatalf("with a part of the next: %d, %v", last, err)
	}

	window := uint64(volumes * s.Slots)
	for missing := uint64(writes) - window + 1; missing < writes; missing++ {
		devs, readers := fresh()
		for k := uint64(1); k <= writes; k++ {
			if k != missing {
				s.Write(devs, k, buf)
			}
		}
		if _, err := s.Check(readers); err == nil {
			t.Errorf("write %d of %d is missing, and it was not found out", missing, writes)
		}
	}
	for old := range volumes {
		devs, readers := fresh()
		for k := uint64(1); k <= writes; k++ {
			if v, _ := s.place(k, volumes); v != old || k <= writes-volumes*2 {
				s.Write(devs, k, buf)
			}
		}
		if _, err := s.Check(readers); err == nil {
			t.Errorf("volume %d is older than the others, and it was not found out", old)
		}
	}
	devs, readers = fresh()
	devs[1].WriteAt(bytes.Repeat([]byte{0xee}, 512), s.Base)
	if _, err := s.Check(readers); err == nil {
		t.Error("foreign content was not found out")
	}
}
