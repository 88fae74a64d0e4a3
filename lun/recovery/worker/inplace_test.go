package worker

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/recovery"
)

// interrupted calls at in the write of that number.
type interrupted struct {
	lun.Device
	writes atomic.Int64
	stop   int64
	at     func()
}

func (d *interrupted) WriteAt(p []byte, off int64) (int, error) {
	if d.writes.Add(1) == d.stop {
		d.at()
	}
	return d.Device.WriteAt(p, off)
}

// TestStagedInWorker kills the worker in the middle of its writes. A second one, with
// the journal, ends it; without, it is refused.
func TestStagedInWorker(t *testing.T) {
	for _, name := range []string{"vss-synth-14", "btrfs-open1"} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk")
			if err := luntest.Unpack(name, path); err != nil {
				t.Fatal(err)
			}
			dev := openWritten(t, path)
			newFile := func() *os.File {
				f, err := os.Create(filepath.Join(t.TempDir(), "journal"))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { f.Close() })
				return f
			}
			begin := func(*Plan) error { return nil }
			s := spec(t, Source{Name: "disk", Device: dev})
			if _, err := InPlace(t.Context(), s, true, begin, nil); !errors.Is(err, recovery.ErrJournal) {
				t.Errorf("without a journal: %v", err)
			}
			s.Journal = newFile()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			d := &interrupted{Device: dev, stop: 3, at: cancel}
			s.Sources[0].Device = d
			if _, err := InPlace(ctx, s, true, begin, nil); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			other := s
			other.Journal = newFile()
			var fe *lun.FormatError
			if _, err := InPlace(t.Context(), other, true, begin, nil); !errors.As(err, &fe) || fe.Field != "mark" {
				t.Errorf("without its journal: %v", err)
			}
			s.Sources[0].Device = dev
			p, err := InPlace(t.Context(), s, true, begin, nil)
			if err != nil || !p.Resumed || p.Done {
				t.Fatalf("the second run: %+v, %v", p, err)
			}
			before := content(t, dev)
			if p, err = InPlace(t.Context(), s, true, begin, nil); err != nil || !p.Done {
				t.Errorf("the third run: %+v, %v", p, err)
			}
			if !bytes.Equal(before, content(t, dev)) {
				t.Error("the third run has written")
			}
		})
	}
}

func content(t *testing.T, d lun.Device) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// written is a file as a disk.
type written struct{ *os.File }

func openWritten(t *testing.T, path string) written {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return written{f}
}

func (w written) Size() int64 {
	st, err := w.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}
