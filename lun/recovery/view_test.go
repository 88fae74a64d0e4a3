package recovery_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/lun/recovery"
)

func openView(t *testing.T, c *open.Contents, snapshots ...string) *recovery.View {
	t.Helper()
	v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Snapshots: snapshots, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

// TestViewShowsTheSnapshotInTheOriginsPlace reads the view with the same code
// as the split: the origin must be what the guest's kernel read of the
// snapshot, and the snapshots must be gone.
func TestViewShowsTheSnapshotInTheOriginsPlace(t *testing.T) {
	for _, tc := range []struct {
		images []string
		choose []string
		volume string
		sum    string
		gone   []string
	}{
		{[]string{"lvm-o1-thick-4k"}, nil, "vgo1/root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f", []string{"vgo1/snap"}},
		{[]string{"lvm-o2-thick-gpt-crash"}, []string{"vgo2/snap1"}, "vgo2/data", "853a2eff3d3a2ce0a15ea08ad22018d907c6121d6ff7a15ee3d71e81eb00ffb0", []string{"vgo2/snap1", "vgo2/snap2"}},
		{[]string{"lvm-o2-thick-gpt-crash"}, []string{"vgo2/snap2"}, "vgo2/data", "d85dd205b2e651c526f42e8676d06631f56ca8432a0a561df48dc87bd6554a02", []string{"vgo2/snap1", "vgo2/snap2"}},
		{[]string{"lvm-o3-thin"}, nil, "vgo3/tvol", "d827e7b2a10cdbe4c7c45bcd133c91a2efdc4f1ffeb4dee82f12cac22f8524c7", []string{"vgo3/tsnap"}},
		{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, []string{"vgt/s1"}, "vgt/vol", "a4f6478dfec8e1a3481629c0cff8201168a5279ee1cfe19fc1d914431fb59bbd", []string{"vgt/s1"}},
		{[]string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, []string{"vgt/s2"}, "vgt/s1", "95debb6b0a2ced6d93c7e7e9e349f183c763dd62827c8cbd9f8c75b827267890", []string{"vgt/s2"}},
		{[]string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, []string{"vgm/r1", "vgm/m1"}, "vgm/r", "4c5edc731d972a631fd01792ba20e089a23c4b714cfae859f74d857d2333af88", []string{"vgm/r1", "vgm/r2", "vgm/m1"}},
		{[]string{"lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c"}, []string{"vgm/m1"}, "vgm/m", "b4dea2068ec959aa2249b1d245fcc2bcb706cc9f13b3588ddd288845e6ae5e7c", []string{"vgm/m1"}},
		{[]string{"lvm-o4-a", "lvm-o4-b"}, []string{"gac6wu-xU2u-QIlR-UpAV-ykKw-ArQR-tRezMV"}, "vgo4/str", "d5b583b019a19187dd4aa6a1b6b42055552eeb29900dbf73ade4ee54ba2bf522", []string{"vgo4/good", "vgo4/tiny"}},
		{[]string{"lvm-o5-wrap"}, nil, "vgo1/root", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f", []string{"vgo1/snap"}},
	} {
		t.Run(strings.Join(append(tc.images, tc.choose...), "+"), func(t *testing.T) {
			base := images(t, tc.images...)
			before := deviceSums(t, base)
			c := probe(t, base...)
			v := openView(t, c, tc.choose...)

			var seen []open.Source
			for _, d := range v.Devices {
				seen = append(seen, open.Source{Name: "view", Device: d})
			}
			vc := probe(t, seen...)
			if got := sum(t, vc, tc.volume); got != tc.sum {
				t.Errorf("the view's %s = %s, want the snapshot %s", tc.volume, got, tc.sum)
			}
			for _, g := range tc.gone {
				if _, err := vc.Volume(g); !errors.Is(err, open.ErrNotFound) {
					t.Errorf("%s in the view: %v, want it gone", g, err)
				}
			}
			if want := c.Groups[0].Seqno + 1; vc.Groups[0].Seqno != want {
				t.Errorf("seqno %d, want %d", vc.Groups[0].Seqno, want)
			}
			if len(vc.Groups[0].Damage) > 0 {
				t.Errorf("the view's metadata areas disagree: %v", vc.Groups[0].Damage)
			}

			// Writing to the view, origin and freed store alike, must leave the
			// base alone and the rest of the view as it was.
			for _, d := range v.Devices {
				junk := bytes.Repeat([]byte{0xAB}, 3<<20+512)
				if _, err := d.WriteAt(junk, d.Size()/2+512); err != nil {
					t.Fatal(err)
				}
			}
			if after := deviceSums(t, base); before != after {
				t.Error("writing to the view changed the base")
			}
		})
	}
}

// TestViewListsWhatItRewrites: wherever the view differs from the split, in its
// snapshots, its metadata or by what was written to it, the list says so.
func TestViewListsWhatItRewrites(t *testing.T) {
	for _, names := range [][]string{{"lvm-o1-thick-4k"}, {"lvm-o4-a", "lvm-o4-b"}, {"lvm-o3-thin"}} {
		s := images(t, names...)
		pick := map[string][]string{"lvm-o4-a": {"vgo4/good"}}[names[0]]
		v := openView(t, probe(t, s...), pick...)
		for i, d := range v.Devices {
			if _, err := d.WriteAt(bytes.Repeat([]byte{0x5A}, 9000), 20<<20+int64(i)*777); err != nil {
				t.Fatal(err)
			}
		}
		lists, err := v.Rewritten()
		if err != nil {
			t.Fatal(err)
		}
		for i, d := range v.Devices {
			split, shown := content(t, s[i].Device), content(t, d)
			last, listed := int64(0), int64(0)
			for _, e := range lists[i] {
				if e.Off < last || e.Len <= 0 {
					t.Fatalf("%s: extents out of order: %+v", names, e)
				}
				last, listed = e.Off+e.Len, listed+e.Len
				copy(split[e.Off:last], shown[e.Off:])
			}
			if !bytes.Equal(split, shown) {
				t.Errorf("%s: disk %d differs from the split outside of the list", names, i+1)
			}
			if listed > d.Size()/2 {
				t.Errorf("%s: the list of disk %d names %d of %d bytes", names, i+1, listed, d.Size())
			}
		}
	}
}

// TestFreedStoreExtentsMayBeOverwritten: an ordinary LVM would give the store's
// extents to a new volume. What it writes there must not show in the origin.
func TestFreedStoreExtentsMayBeOverwritten(t *testing.T) {
	c := probe(t, images(t, "lvm-o1-thick-4k")...)
	areas, err := c.Groups[0].Map(c.Groups[0].LV("snap"))
	if err != nil {
		t.Fatal(err)
	}
	v := openView(t, c)
	for _, a := range areas {
		if _, err := v.Devices[0].WriteAt(bytes.Repeat([]byte{0xEE}, int(a.Len)), a.Off); err != nil {
			t.Fatal(err)
		}
	}
	vc := probe(t, open.Source{Name: "view", Device: v.Devices[0]})
	if got, want := sum(t, vc, "vgo1/root"), oracles[0].sum; got != want {
		t.Errorf("root = %s after its former store was overwritten, want %s", got, want)
	}
}

func TestViewIsRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		images []string
		choose []string
		is     error
		says   string
	}{
		{"overflowed", []string{"lvm-o4-a", "lvm-o4-b"}, []string{"vgo4/tiny"}, nil, "overflowed"},
		{"two snapshots", []string{"lvm-o2-thick-gpt-crash"}, nil, recovery.ErrChoice, "vgo2/data has 2 snapshots (snap1 "},
		{"two of one", []string{"lvm-o2-thick-gpt-crash"}, []string{"vgo2/snap1", "vgo2/snap2"}, recovery.ErrChoice, "of one volume"},
		{"not a snapshot", []string{"lvm-o1-thick-4k"}, []string{"vgo1/root"}, recovery.ErrChoice, "no snapshot"},
		{"unknown", []string{"lvm-o1-thick-4k"}, []string{"vgo1/other"}, open.ErrNotFound, "vgo1/snap"},
		{"missing disk", []string{"lvm-o4-a"}, []string{"vgo4/good"}, nil, "27iBRZ-b6Yy-XaSC-7hah-Ep49-LrFw-QqoFuv"},
		{"a chain", []string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, nil, recovery.ErrChoice, "2 snapshots"},
		{"both of a chain", []string{"lvm-g1-thin-a", "lvm-g1-thin-b"}, []string{"vgt/s1", "vgt/s2"}, recovery.ErrChoice, "has a snapshot itself"},
		{"a leg's disk is missing", []string{"lvm-g2-mirrors-a"}, []string{"vgm/r1"}, nil, "none of the devices"},
		{"thin pool", []string{"lvm-o3-thin"}, []string{"vgo3/pool"}, recovery.ErrChoice, "no snapshot"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := probe(t, images(t, tc.images...)...)
			v, err := recovery.OpenView(context.Background(), c, recovery.ViewOptions{Snapshots: tc.choose, Dir: t.TempDir()})
			if err == nil {
				v.Close()
				t.Fatal("the view opened")
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("error %v, want %v", err, tc.is)
			}
			if !strings.Contains(err.Error(), tc.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, tc.says)
			}
		})
	}
}

func TestVerify(t *testing.T) {
	const (
		str  = "MLUxrB-qmJJ-EdCO-73yD-3NsB-EgjQ-T7X90N"
		good = "gac6wu-xU2u-QIlR-UpAV-ykKw-ArQR-tRezMV"
		tiny = "2ujlwY-zlgL-Oxdx-jcNx-qEZF-ZSZF-rWaZoC"
	)
	c := probe(t, images(t, "lvm-o4-a", "lvm-o4-b")...)
	got, err := recovery.Verify(context.Background(), c, []recovery.Expected{
		{Volume: str, Snapshot: good}, {Volume: str, Snapshot: tiny}, {Volume: tiny, Snapshot: good}, {Volume: str, Snapshot: str}, {Volume: str, Snapshot: "nope"},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []struct {
		ok, found bool
		reason    string
	}{{true, true, ""}, {false, true, "overflowed"}, {false, true, "not of " + tiny}, {false, true, "no snapshot"}, {false, false, "no such volume"}}
	for i, w := range want {
		if got[i].OK != w.ok || got[i].Found != w.found || !strings.Contains(got[i].Reason, w.reason) || (w.ok && got[i].Reason != "") {
			t.Errorf("verdict %d = %+v, want ok=%v found=%v reason with %q", i, got[i], w.ok, w.found, w.reason)
		}
	}
	// The kernel's own status line for vgo4-good was "11392/24576 64": 356
	// chunks of 32 sectors in use, two of them header and table.
	if got[0].Exceptions != 354 {
		t.Errorf("%d exceptions, the kernel counted 354", got[0].Exceptions)
	}
}

func TestInspectAgreesWithTheKernelsStatus(t *testing.T) {
	c := probe(t, images(t, "lvm-o1-thick-4k")...)
	r, err := recovery.Inspect(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	s := r.Groups[0].Volumes[0].Snapshots[0]
	// dmsetup status: "16984/32768 80"; lvs: 51.83 %; chunks of 8 sectors.
	if s.Exceptions != 2113 || s.UsedPercent != 51.83 || s.ChunkSize != 4096 || s.State != recovery.Valid {
		t.Errorf("snapshot %+v", s)
	}
	if len(r.Findings) != 0 {
		t.Errorf("findings on a good image: %+v", r.Findings)
	}
}

// TestRefusedVolumesAreNamed: what the guest of these images had besides, and
// what it does not hide.
func TestRefusedVolumesAreNamed(t *testing.T) {
	r, err := recovery.Inspect(context.Background(), probe(t, images(t, "lvm-g2-mirrors-a", "lvm-g2-mirrors-b", "lvm-g2-mirrors-c")...))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"vgm/r": "", "vgm/m": "", "vgm/five": "only raid1 is read", "vgm/slow": "lvconvert --uncache"}
	for _, v := range r.Groups[0].Volumes {
		why, ok := want[v.Volume]
		if !ok || v.Readable != (why == "") || !strings.Contains(v.Reason, why) || why != "" && !strings.Contains(v.Reason, v.Volume) {
			t.Errorf("%s: readable %v, %q; want %q", v.Volume, v.Readable, v.Reason, why)
		}
		delete(want, v.Volume)
		for _, s := range v.Snapshots {
			if s.State != recovery.Valid {
				t.Errorf("%s: %s, %s", s.Volume, s.State, s.Reason)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("not there: %v", want)
	}
}

// TestInspectShowsThinSnapshots: lvs of the guest said 285 blocks of 64 KiB for
// tsnap, which is 27.83 % of 64 MiB.
func TestInspectShowsThinSnapshots(t *testing.T) {
	r, err := recovery.Inspect(context.Background(), probe(t, images(t, "lvm-o3-thin")...))
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]recovery.VolumeReport{}
	for _, v := range r.Groups[0].Volumes {
		byName[v.Volume] = v
	}
	vol := byName["vgo3/tvol"]
	if !vol.Readable || vol.Type != "thin" || len(vol.Snapshots) != 1 {
		t.Fatalf("%+v", vol)
	}
	s := vol.Snapshots[0]
	if s.Volume != "vgo3/tsnap" || s.Kind != "lvm-thin" || s.Origin != "vgo3/tvol" || s.State != recovery.Valid || s.ChunkSize != 64<<10 || s.Exceptions != 285 || s.UsedPercent != 27.83 {
		t.Errorf("snapshot %+v", s)
	}
	if snap := byName["vgo3/tsnap"]; !snap.Readable || snap.Origin != "vgo3/tvol" {
		t.Errorf("the snapshot as a volume: %+v", snap)
	}
	if pool := byName["vgo3/pool"]; pool.Readable || !strings.Contains(pool.Reason, "thin pool") {
		t.Errorf("the pool: %+v", pool)
	}
	if len(r.Findings) != 0 {
		t.Errorf("findings on a good image: %+v", r.Findings)
	}
}

func TestCopyIsSparseAndExact(t *testing.T) {
	c := probe(t, images(t, "lvm-o1-thick-4k")...)
	v, err := c.Volume("vgo1/snap")
	if err != nil {
		t.Fatal(err)
	}
	d, err := v.Open()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out.img")
	last := int64(0)
	if err := recovery.Copy(context.Background(), d, path, func(n int64) { last = n }); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.Sum256(b)
	if got := hex.EncodeToString(h[:]); got != oracles[0].sum || last != d.Size() {
		t.Errorf("copy = %s, progress %d of %d", got, last, d.Size())
	}
	if err := recovery.Copy(context.Background(), d, path, nil); !errors.Is(err, os.ErrExist) {
		t.Errorf("copy over a file: %v, want ErrExist", err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the file that was there: %v", err)
	}
}

func deviceSums(t *testing.T, s []open.Source) string {
	t.Helper()
	h := sha256.New()
	for _, d := range s {
		x, err := recovery.Sum(context.Background(), d.Device, nil)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(x[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

var _ lun.Device = (*open.FileDevice)(nil)

// TestViewUnderLoad: readers and writers of one view, each with a region of its
// own, see what they wrote, and nobody sees a torn block.
func TestViewUnderLoad(t *testing.T) {
	v := openView(t, probe(t, images(t, "lvm-o1-thick-4k")...))
	d := v.Devices[0]
	const region = 4 << 20
	var wg sync.WaitGroup
	for w := range int64(8) {
		wg.Go(func() {
			p, got := bytes.Repeat([]byte{byte(w + 1)}, 12345), make([]byte, 12345)
			for off := w * region; off+int64(len(p)) < (w+1)*region; off += int64(len(p)) + 777 {
				if _, err := d.WriteAt(p, off); err != nil {
					t.Error(err)
				}
				if _, err := d.ReadAt(got, off); err != nil || !bytes.Equal(got, p) {
					t.Errorf("at %d: %v or other data", off, err)
				}
			}
		})
	}
	wg.Wait()
	// What lies between the writes is still the clean content.
	got, want := make([]byte, 777), make([]byte, 777)
	for w := range int64(8) {
		off := w*region + 12345
		if _, err := d.ReadAt(got, off); err != nil {
			t.Fatal(err)
		}
		if _, err := v.Clean[0].ReadAt(want, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("bytes at %d that nobody wrote differ from the clean view", off)
		}
	}
}
