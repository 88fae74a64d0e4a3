package arraytest

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/cleave-san/cleave/lun"
)

// Stream is a writer over several volumes that lets a split's write order be
// checked: it issues write k+1 only after write k was acknowledged, and each
// goes to another volume. Whatever instant the volumes were split at, together
// they hold the writes up to some k, and of k+1 at most a part.
//
// Several streams with different IDs and bases may write at once.
type Stream struct {
	ID    uint8
	Base  int64 // where its area begins on each volume
	Size  int   // bytes of one write, a multiple of 512
	Slots int   // places on each volume
}

// Area is how many bytes the stream uses on each volume, from Base on.
func (s Stream) Area() int64 { return int64(s.Size) * int64(s.Slots) }

// place is where write k (from 1 on) goes. Rounds go over the volumes forth
// and back, so that no order of splitting them one by one goes unnoticed.
func (s Stream) place(k uint64, volumes int) (volume int, off int64) {
	n := uint64(volumes)
	round, i := (k-1)/n, (k-1)%n
	if round%2 == 1 {
		i = n - 1 - i
	}
	return int(i), s.Base + int64(round%uint64(s.Slots))*int64(s.Size)
}

// fill is the content of write k: every 8 bytes say which it is.
func (s Stream) fill(p []byte, k uint64) {
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], uint64(s.ID)<<56|k)
	}
}

// Write issues write k and returns when it was acknowledged. buf has Size
// bytes.
func (s Stream) Write(devs []lun.Device, k uint64, buf []byte) error {
	v, off := s.place(k, len(devs))
	s.fill(buf, k)
	_, err := devs[v].WriteAt(buf, off)
	return err
}

// Check reads the volumes' splits and returns the last write that is in them,
// in whole or in part. A TornError says that what they hold is no prefix of what
// was written: an older write is missing, although a later one is there.
func (s Stream) Check(devs []io.ReaderAt) (last uint64, err error) {
	// found[v][slot] are the lowest and highest number in a place.
	type found struct{ low, high uint64 }
	got := make([][]found, len(devs))
	buf := make([]byte, s.Size)
	for v, d := range devs {
		got[v] = make([]found, s.Slots)
		for slot := range s.Slots {
			if _, err := d.ReadAt(buf, s.Base+int64(slot)*int64(s.Size)); err != nil {
				return 0, err
			}
			f := found{low: 1<<64 - 1}
			for i := 0; i < len(buf); i += 8 {
				w := binary.LittleEndian.Uint64(buf[i:])
				if w != 0 && uint8(w>>56) != s.ID {
					return 0, fmt.Errorf("stream %d: volume %d slot %d holds %#x, which it never wrote", s.ID, v, slot, w)
				}
				w &= 1<<56 - 1
				f.low, f.high = min(f.low, w), max(f.high, w)
			}
			got[v][slot] = f
			last = max(last, f.high)
		}
	}
	n := uint64(len(devs))
	expect := func(v, slot int, upTo uint64) uint64 {
		if upTo == 0 {
			return 0
		}
		for round := int64((upTo - 1) / n); round >= 0; round-- {
			if uint64(round)%uint64(s.Slots) != uint64(slot) {
				continue
			}
			i := uint64(v)
			if round%2 == 1 {
				i = n - 1 - i
			}
			if k := uint64(round)*n + i + 1; k <= upTo {
				return k
			}
		}
		return 0
	}
	for v := range devs {
		for slot, f := range got[v] {
			want := expect(v, slot, last)
			switch {
			case f.low == want && f.high == want:
			case want == last && f.high == last && f.low == expect(v, slot, last-1):
				// The last one, in part: it was never acknowledged.
			default:
				return last, &TornError{fmt.Errorf("stream %d: write %d is there, but volume %d slot %d holds %d to %d instead of write %d", s.ID, last, v, slot, f.low, f.high, want)}
			}
		}
	}
	return last, nil
}

// TornError says that splits hold no prefix of what was written.
type TornError struct{ Err error }

func (e *TornError) Error() string { return e.Err.Error() }
func (e *TornError) Unwrap() error { return e.Err }
