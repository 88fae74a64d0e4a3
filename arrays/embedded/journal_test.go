package embedded

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"github.com/cleave-san/cleave/arrays/embedded/disk"
	"github.com/cleave-san/cleave/arrays/embedded/disk/disktest"
)

// Whenever the power fails, an intent log's map has every bit that was made
// stable and not cleared since, and none but those and what was asked for when
// it failed.
func TestJournalKeepsMarks(t *testing.T) {
	const size = 3 * bitsPerBlock * regionSize
	rapid.Check(t, func(t *rapid.T) {
		fs := disktest.New()
		if err := fs.Mkdir("/d"); err != nil {
			t.Fatal(err)
		}
		m, err := createLog(fs, "/d/log", size, regionSize)
		if err == nil {
			err = errors.Join(fs.SyncDir("/d"), fs.SyncDir("/"))
		}
		if err != nil {
			t.Fatal(err)
		}
		seed := rapid.Uint64().Draw(t, "seed")
		stable, allowed := map[int64]bool{}, map[int64]bool{}
		check := func(m *mapFile) {
			for i := range stable {
				if !m.get(i) {
					t.Fatalf("the mark of region %d is lost", i)
				}
			}
			for i := m.next(0); i >= 0; i = m.next(i + 1) {
				if !stable[i] && !allowed[i] {
					t.Fatalf("region %d is marked", i)
				}
			}
		}
		open := func(fs *disktest.FS) *mapFile {
			m, bad, err := openMap(fs, "/d/log", size)
			if err != nil || bad > 0 {
				t.Fatalf("%d blocks damaged, %v", bad, err)
			}
			return m
		}
		var cuts []*disktest.FS
		fs.OnSync(func(p disktest.Point) {
			seed++
			cuts = append(cuts, fs.Cut(seed))
		})
		t.Repeat(map[string]func(*rapid.T){
			"mark": func(t *rapid.T) {
				marks := rapid.SliceOfN(rapid.Int64Range(0, m.n()-1), 1, 5*bitsPerSector).Draw(t, "marks")
				fresh := false
				for _, i := range marks {
					fresh = m.set(i) || fresh
					allowed[i] = true
				}
				if err := m.flushMarks(marks); err != nil {
					t.Fatal(err)
				}
				for _, c := range cuts {
					check(open(c))
				}
				if fresh { // what was cleared before may have come back until now
					stable, allowed = map[int64]bool{}, map[int64]bool{}
				}
				for i := m.next(0); i >= 0; i = m.next(i + 1) {
					stable[i] = true
				}
			},
			"clear": func(t *rapid.T) {
				for i := m.next(0); i >= 0; i = m.next(i + 1) {
					if rapid.Bool().Draw(t, "clear") {
						m.clear(i)
						delete(stable, i)
						allowed[i] = true
					}
				}
				if err := m.flush(); err != nil {
					t.Fatal(err)
				}
				for _, c := range cuts {
					check(open(c))
				}
			},
			"reopen": func(t *rapid.T) {
				m.close()
				m = open(fs)
			},
			"": func(t *rapid.T) {
				cuts = nil
				check(m)
				check(open(fs))
			},
		})
	})
}

// What was cleared before a restart is not marked again beside what is marked
// after it, wherever the power fails then: that would be more than the limit.
func TestJournalForgetsAtRestart(t *testing.T) {
	const size = bitsPerBlock * regionSize
	fs := disktest.New()
	m, err := createLog(fs, "/log", size, regionSize)
	if err == nil {
		err = fs.SyncDir("/")
	}
	if err != nil {
		t.Fatal(err)
	}
	const before, after = 1, 2
	m.set(before)
	if err := m.flushMarks([]int64{before}); err != nil {
		t.Fatal(err)
	}
	m.clear(before)
	if err := m.flush(); err != nil {
		t.Fatal(err)
	}
	m.close()
	if m, _, err = openMap(fs, "/log", size); err != nil {
		t.Fatal(err)
	}
	cuts := 0
	fs.OnSync(func(disktest.Point) {
		for seed := range uint64(100) {
			cuts++
			left, _, err := openMap(fs.Cut(seed), "/log", size)
			if err != nil {
				t.Fatal(err)
			}
			if left.get(before) && left.get(after) {
				t.Fatalf("cut %d: both are marked", seed)
			}
		}
	})
	m.set(after)
	if err := m.flushMarks([]int64{after}); err != nil || cuts == 0 {
		t.Fatalf("%v, %d cuts", err, cuts)
	}
}

// A sector of the journal that counts and is damaged marks everything; one that
// does not count marks nothing.
func TestJournalDamaged(t *testing.T) {
	path := filepath.Join(testDir(t), "log")
	const size = 1 << 30
	m, err := createLog(disk.OS(), path, size, regionSize)
	if err != nil {
		t.Fatal(err)
	}
	const marks = 3 * bitsPerSector
	for i := range int64(marks) {
		m.set(i)
		if err := m.flushMarks([]int64{i}); err != nil {
			t.Fatal(err)
		}
	}
	m.close()
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at, all := range []bool{true, true, true, true, false} {
		b := bytes.Clone(good)
		b[(1+at)*sector+rand.IntN(sector)] ^= 0x40
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, bad, err := openMap(disk.OS(), path, size)
		if err != nil || bad > 0 != all || m.count() != map[bool]int64{true: m.n(), false: marks}[all] {
			t.Fatalf("sector %d: %d bits, %d blocks damaged, %v", at, m.count(), bad, err)
		}
		m.close()
	}
}

func FuzzOpenLog(f *testing.F) {
	path := filepath.Join(f.TempDir(), "m")
	m, err := createLog(disk.OS(), path, 1<<30, regionSize)
	if err != nil {
		f.Fatal(err)
	}
	for i := range int64(3) {
		m.set(i)
		if err := m.flushMarks([]int64{i}); err != nil {
			f.Fatal(err)
		}
	}
	m.close()
	good, _ := os.ReadFile(path)
	f.Add(good)
	f.Add(good[:3*sector+9])
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), "m")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		m, _, err := openMap(disk.OS(), path, 1<<30)
		if err != nil {
			return
		}
		before := m.count()
		m.set(7)
		if err := m.flushMarks([]int64{7}); err != nil {
			t.Fatal(err)
		}
		m.close()
		m, _, err = openMap(disk.OS(), path, 1<<30)
		if err != nil || !m.get(7) || m.count() < before {
			t.Fatalf("what was marked is not: %d of %d, %v", m.count(), before, err)
		}
		m.close()
	})
}
