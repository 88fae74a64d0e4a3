package embedded

import (
	"bytes"
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
	"github.com/cleave-san/cleave/lun"
)

// A map file holds what a plain set of integers does, also after it was
// flushed, read again and grown.
func TestMapFileIsASet(t *testing.T) {
	dir := testDir(t)
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int64Range(1, 4*bitsPerBlock).Draw(t, "bits") * regionSize
		path := filepath.Join(dir, "m")
		m, err := createMap(disk.OS(), path, size, regionSize)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { m.close() }()
		model := map[int64]bool{}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				i := rapid.Int64Range(0, m.n()-1).Draw(t, "i")
				if m.set(i) == model[i] {
					t.Fatalf("set(%d) misjudges whether it was new", i)
				}
				model[i] = true
			},
			"clear": func(t *rapid.T) {
				i := rapid.Int64Range(0, m.n()-1).Draw(t, "i")
				m.clear(i)
				delete(model, i)
			},
			"reopen": func(t *rapid.T) {
				if err := m.flush(); err != nil {
					t.Fatal(err)
				}
				m.close()
				n, bad, err := openMap(disk.OS(), path, size)
				if err != nil || bad > 0 {
					t.Fatal(bad, err)
				}
				m = n
			},
			"grow": func(t *rapid.T) {
				size += rapid.Int64Range(0, bitsPerBlock).Draw(t, "more") * regionSize
				m.grow(regionsFor(size, regionSize))
			},
			"": func(t *rapid.T) {
				if m.count() != int64(len(model)) {
					t.Fatalf("count is %d, want %d", m.count(), len(model))
				}
				n := 0
				for i := m.next(0); i >= 0; i = m.next(i + 1) {
					if !model[i] || !m.get(i) {
						t.Fatalf("bit %d is set", i)
					}
					n++
				}
				if n != len(model) {
					t.Fatalf("next finds %d bits of %d", n, len(model))
				}
			},
		})
	})
}

// Ranges that overlap are never held at once, and are served in order; those
// that don't overlap are not made to wait.
func TestRanges(t *testing.T) {
	var r ranges
	r.init()
	var cells [64]atomic.Int32
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 7))
			var s span
			for range 3000 {
				off := rng.Int64N(60)
				n := 1 + rng.Int64N(4)
				r.lock(&s, off, n)
				for i := off; i < off+n; i++ {
					if cells[i].Add(1) != 1 {
						t.Error("two hold one cell")
					}
				}
				for i := off; i < off+n; i++ {
					cells[i].Add(-1)
				}
				r.unlock(&s)
			}
		})
	}
	wg.Wait()
	if r.first != nil || r.last != nil {
		t.Fatal("ranges are left")
	}

	synctest.Test(t, func(t *testing.T) {
		var r ranges
		r.init()
		var a, b, c, d span
		var order []string
		r.lock(&a, 0, 10)
		go func() { r.lock(&b, 5, 10); order = append(order, "b"); r.unlock(&b) }()
		synctest.Wait()
		go func() { r.lock(&c, 12, 10); order = append(order, "c"); r.unlock(&c) }() // waits for b, not for a
		synctest.Wait()
		r.lock(&d, 100, 1)
		r.unlock(&d)
		r.unlock(&a)
		synctest.Wait()
		if len(order) != 2 || order[0] != "b" {
			t.Fatalf("served in order %v", order)
		}
	})
}

// Whoever waits for the whole device keeps later ones out, gets it when earlier
// ones have ended, or gives up in time and lets the later ones go on.
func TestRangesAwait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r ranges
		r.init()
		var a, all, b span
		r.lock(&a, 0, 10)
		r.ask(&all, 0, math.MaxInt64)
		done := false
		go func() { r.lock(&b, 100, 1); done = true; r.unlock(&b) }()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if r.await(ctx, &all) {
			t.Fatal("granted while an earlier range is held")
		}
		if ctx.Err() == nil || done {
			t.Fatal("gave up early, or a later range was granted")
		}
		r.unlock(&all)
		synctest.Wait()
		if !done {
			t.Fatal("the later range still waits")
		}
		r.ask(&all, 0, math.MaxInt64)
		go r.unlock(&a)
		if !r.await(t.Context(), &all) {
			t.Fatal("not granted")
		}
		r.unlock(&all)
		if r.first != nil {
			t.Fatal("ranges are left")
		}
	})
}

// The intent log never holds more regions than its limit, and every write's
// regions are marked on disk while it is under way.
func TestIntentLogIsBounded(t *testing.T) {
	const path, unit = "/log", 4 << 20
	fs := disktest.New()
	m, err := createLog(fs, path, 1<<40, unit)
	if err := errors.Join(err, fs.SyncDir("/")); err != nil {
		t.Fatal(err)
	}
	var l *intentLog
	var wg sync.WaitGroup
	var cleaning sync.Mutex
	var syncs atomic.Int32
	l = newIntentLog(m, 64*unit, func() {
		wg.Go(func() {
			cleaning.Lock()
			defer cleaning.Unlock()
			l.clean(false, func() error { syncs.Add(1); return nil })
		})
	})
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			var h held
			rng := rand.New(rand.NewPCG(uint64(w), 1))
			for range 300 {
				off := rng.Int64N(1<<40 - unit)
				if err := l.begin(&h, off, 4096); err != nil {
					t.Error(err)
					return
				}
				if n := l.marked(); n > l.limit {
					t.Errorf("%d regions are marked, the limit is %d", n, l.limit)
				}
				now, _, err := openMap(fs.Cut(pcWorst[0]), path, 1<<40)
				if err != nil || !now.get(off/unit) {
					t.Errorf("the mark of a write under way is not stable: %v", err)
				}
				now.close()
				l.end(&h)
			}
		})
	}
	writers.Wait()
	wg.Wait()
	if syncs.Load() == 0 {
		t.Fatal("never cleaned")
	}
	m.close()
}

// What is recovered while marks are being cleared is not stable yet: its mark
// stays.
func TestIntentLogRecoversWhileItIsCleaned(t *testing.T) {
	const unit, region = 4 << 20, 7
	m, err := createLog(disk.OS(), filepath.Join(testDir(t), "log"), 1<<40, unit)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	m.set(region)
	l := newIntentLog(m, 64*unit, func() {})
	l.adopt()
	var h held
	if err := l.begin(&h, region*unit, 4096); err != nil {
		t.Fatal(err)
	}
	l.end(&h)
	if err := l.clean(false, func() error { l.recovered(region); return nil }); err != nil {
		t.Fatal(err)
	}
	if !m.get(region) {
		t.Fatal("a mark was cleared for a sync that began before its region was recovered")
	}
	if err := l.clean(false, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if m.get(region) || l.marked() != 0 {
		t.Fatal("the mark was not cleared by the next sync")
	}
}

// After a damaged map, which marks all, a write does not wait for most of it to
// be recovered.
func TestIntentLogWithAllMarked(t *testing.T) {
	const unit = 4 << 20
	m, err := createLog(disk.OS(), filepath.Join(testDir(t), "log"), 1<<30, unit)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	for i := range m.n() {
		m.set(i)
	}
	var l *intentLog
	l = newIntentLog(m, 16*unit, func() { t.Error("a write waits for room"); l.closed = true })
	l.adopt()
	l.recovered(0)
	if err := l.clean(false, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	var h held
	if err := l.begin(&h, 0, 4096); err != nil {
		t.Fatal(err)
	}
	l.end(&h)
}

func FuzzDecodeCatalog(f *testing.F) {
	c := &catalog{Array: lun.NewIdentity(), Pools: map[string]lun.Identity{"a": lun.NewIdentity()}}
	v := volumeRecord{ID: lun.NewIdentity(), Name: "db", Size: 1 << 20, Want: []string{"a"}, NextEpoch: 2, Epochs: []uint64{1}}
	v.Mirrors = []mirrorRecord{newMirror("db", "a", inSync)}
	c.Volumes = append(c.Volumes, v)
	c.Snapshots = []snapshotRecord{{ID: lun.NewIdentity(), Tag: "t", Volume: v.ID, Size: 512, Mirror: newMirror("db", "a", inSync), Epoch: 1}}
	b, err := encodeRecord(catalogKind, catalogVersion, c)
	if err != nil {
		f.Fatal(err)
	}
	_, body, _ := bytes.Cut(b, []byte("\n"))
	f.Add(body)
	f.Add([]byte(`{"volumes":[{"name":"../x","size":-1}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		// The checksum is made right, so that what is behind it is reached.
		var raw rawJSON = body
		b, err := encodeRecord(catalogKind, catalogVersion, raw)
		if err != nil {
			return
		}
		c, err := decodeCatalog(b)
		if err != nil {
			return
		}
		for _, v := range c.Volumes {
			for _, m := range v.Mirrors {
				if !filepath.IsLocal(m.File) {
					t.Fatalf("path %q leads out of the pool", m.File)
				}
			}
		}
		again, err := encodeRecord(catalogKind, catalogVersion, c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeCatalog(again); err != nil {
			t.Fatalf("what was read can't be read again: %v", err)
		}
	})
}

type rawJSON []byte

func (r rawJSON) MarshalJSON() ([]byte, error) { return r, nil }

func FuzzDecodeRecord(f *testing.F) {
	b, _ := encodeRecord("label", 1, map[string]string{"a": "b"})
	f.Add(b)
	f.Add([]byte("cleave label 1 crc32c=\n{}"))
	f.Add(bytes.Repeat([]byte("x"), 5000))
	f.Fuzz(func(t *testing.T, b []byte) {
		var v any
		decodeRecord(b, "label", 1, &v)
	})
}

func FuzzOpenMap(f *testing.F) {
	path := filepath.Join(f.TempDir(), "m")
	m, err := createMap(disk.OS(), path, 1<<32, regionSize)
	if err != nil {
		f.Fatal(err)
	}
	m.set(5)
	m.set(bitsPerBlock + 1)
	m.flush()
	m.close()
	good, _ := os.ReadFile(path)
	f.Add(good)
	f.Add(good[:700])
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "m")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, _, err := openMap(disk.OS(), path, 1<<32)
		if err != nil {
			return
		}
		defer m.close()
		// Whatever is damaged, no bit that was written is missing.
		if bytes.Equal(b[:min(len(b), sector)], good[:sector]) && len(b) >= 2*sector && !bytes.Equal(b[sector:2*sector], emptySector[:]) && !m.get(5) {
			if crcOK(b[sector : 2*sector]) {
				return // another valid block
			}
			t.Fatal("a damaged block lost a bit")
		}
	})
}

func crcOK(b []byte) bool {
	m := &mapFile{bitmap: newBitmap(bitsPerBlock)}
	return m.decodeBlock(0, b)
}
