package assemble

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/cleave-san/cleave/arrays"
	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/arrays/embedded/remote"
	"github.com/cleave-san/cleave/iscsi"
	"github.com/cleave-san/cleave/lun"
	"github.com/cleave-san/cleave/lun/luntest"
	"github.com/cleave-san/cleave/lun/nbd"
	"github.com/cleave-san/cleave/lun/open"
	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/engine"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
	"github.com/cleave-san/cleave/orchestrator/journal"
	"github.com/cleave-san/cleave/orchestrator/writer"
	"github.com/cleave-san/cleave/orchestrator/writer/writertest"
	"github.com/cleave-san/cleave/plugin/cli"
)

// lvmScene is a guest whose disks, images that a real guest's LVM has written,
// are volumes of a real array, and whose snapshot is found by real workers. Only
// its hypervisor is a fake.
type lvmScene struct {
	*testing.T
	client  *remote.Client
	vm      *writertest.Fake
	engine  *engine.Engine
	journal journal.Journal
	views   *cutting
	hosts   engine.HostVolumes // nil: disks are no files of a host
	dir     string
	disks   []lvmDisk

	volume, snapshot, sum string // LVM's names, and what the guest's kernel read of the snapshot

	// table is where the second half of the first 256 entries of the snapshot's
	// exception table lies on the first disk; 0 if it is a thin one or has chunks
	// of another size than 4 KiB.
	table int64
}

// lvmDisk is a disk of the guest: a volume, and production's way to it.
type lvmDisk struct {
	device string
	id     driver.VolumeID
	dev    lun.Device
}

const (
	production = "iqn.2026-01.test:production"
	backup     = "iqn.2026-01.test:backup"
)

// cutting are the real views, but for a recovery in place that is cut off once it
// has begun, as often as is told.
type cutting struct {
	engine.Recoverer
	cuts int
}

var errCut = errors.New("it was cut off")

func (c *cutting) InPlace(ctx context.Context, disks engine.Disks, want []engine.InGuest, discard bool, begin func(engine.InPlacePlan) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cut := c.cuts > 0
	err := c.Recoverer.InPlace(ctx, disks, want, discard, func(p engine.InPlacePlan) error {
		err := begin(p)
		if cut {
			c.cuts--
			cancel(errCut)
		}
		return err
	})
	if cut && err == nil {
		err = errCut // it was quicker; what follows finds it done
	}
	return err
}

// newArrayScene starts an array that holds nothing yet.
func newArrayScene(t *testing.T) *lvmScene {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	portal := l.Addr().String()
	l.Close()
	config := filepath.Join(dir, "cleave.yaml")
	text := fmt.Sprintf("dataPlane: {socket: a.sock, state: array, portals: ['%s'], pools: {a: pa, b: pb, c: pc, d: pd}}\n", portal)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := Array(ctx, cli.ArrayOptions{Config: config}, none, slog.New(slog.DiscardHandler)); err != nil {
			t.Errorf("data plane: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	s := &lvmScene{T: t, client: remote.New(filepath.Join(dir, "a.sock")), journal: journal.NewMemory(), dir: dir}
	eventually(t, "data plane", func() error { _, err := s.client.Status(t.Context()); return err })
	for _, host := range []string{production, backup} {
		s.ok(s.client.SetInitiator(t.Context(), remote.Initiator{IQN: host}))
	}
	return s
}

// fill makes a volume of these contents.
func (s *lvmScene) fill(device string, contents []byte) driver.Path {
	s.Helper()
	d := lvmDisk{device: device}
	v, err := s.client.CreateVolume(s.Context(), remote.CreateVolumeRequest{Name: d.device, Size: int64(len(contents)), Pools: []string{"a", "b", "c", "d"}})
	s.ok(err)
	d.id = v.ID
	p, err := s.client.ExposeVolume(s.Context(), v.ID, []string{production}, false)
	s.ok(err)
	d.dev = s.login(p, production, true)
	zero := make([]byte, 64<<10)
	for off := 0; off < len(contents); off += len(zero) {
		if b := contents[off:min(off+len(zero), len(contents))]; !bytes.Equal(b, zero[:len(b)]) {
			s.write(d.dev, b, int64(off))
		}
	}
	s.disks = append(s.disks, d)
	return p
}

func newLVMScene(t *testing.T, volume, snapshot, sum string, images ...string) *lvmScene {
	t.Helper()
	s := newArrayScene(t)
	s.volume, s.snapshot, s.sum = volume, snapshot, sum
	vm := orchestrator.VM{Name: "db", Power: orchestrator.Running}
	var contents []byte
	var sources []open.Source
	for i, image := range images {
		contents = luntest.Image(t, image)
		sources = append(sources, open.Source{Name: image, Device: luntest.ReadOnly(contents)})
		device := fmt.Sprintf("vd%c", 'a'+i)
		p := s.fill(device, contents)
		vm.Disks = append(vm.Disks, orchestrator.Disk{Device: device, Format: "raw", Size: int64(len(contents)), Cache: "none", IQN: p.IQN, LUN: p.LUN, Portal: p.Portals[0]})
	}
	found := s.guest(&vm, sources...)
	if !found.Snapshot.Thin && len(images) == 1 {
		areas, err := found.Group.Map(found.Snapshot.COW)
		s.ok(err)
		s.table = areas[0].Off + 4096 + 128*16
	}
	s.serve(found, vm)
	return s
}

// guest gives a VM, whose disks these are, a guest that snapshots s.volume as
// s.snapshot.
func (s *lvmScene) guest(vm *orchestrator.VM, disks ...open.Source) *open.Volume {
	s.Helper()
	c, err := open.Probe(s.Context(), disks...)
	s.ok(err)
	found, err := c.Volume(s.snapshot)
	s.ok(err)
	vm.Guest = orchestrator.Guest{Requester: "fake-ga 1", CanSnapshot: true,
		Volumes: []orchestrator.GuestVolume{{Name: s.volume, UUID: found.Snapshot.Origin.UUID, Kind: "lvm-thick"}}}
	return found
}

// serve starts a control plane for these VMs, of which each guest reports the
// snapshot that was found.
func (s *lvmScene) serve(found *open.Volume, vms ...orchestrator.VM) {
	s.Helper()
	s.vm = writertest.NewFake("fake", vms...)
	s.vm.Add(writertest.Fault{On: writertest.OpSnapshot, Report: func(r *wire.Report) {
		r.Completions[0].Snapshot = found.Snapshot.COW.UUID
	}})
	state := filepath.Join(s.dir, "st")
	v, err := newViews(state, RecoveryConfig{Overlay: filepath.Join(state, "views"), OverlayLimit: 1 << 30, Memory: 1 << 30})
	s.ok(err)
	s.views = &cutting{Recoverer: v}
	s.start()
	s.Cleanup(func() { s.engine.Close() })
}

// start starts a control plane over the scene's journal.
func (s *lvmScene) start() {
	s.Helper()
	e, err := engine.New(engine.Config{
		Journal: s.journal, Writers: []writer.Writer{s.vm}, Recoverer: s.views, Publisher: publisher{s.client}, HostVolumes: s.hosts,
		Arrays: []*arrays.Array{arrays.New("main", s.client, arrays.Options{})},
	})
	s.ok(err)
	s.engine = e
}

func (s *lvmScene) ok(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// login logs in to a LUN.
func (s *lvmScene) login(p driver.Path, host string, writable bool) lun.Device {
	s.Helper()
	d, err := openLUN(s.Context(), fmt.Sprintf("iscsi://%s/%s/%d", p.Portals[0], p.IQN, p.LUN), cli.LUNLogin{Initiator: iscsi.Name(host)}, writable)
	s.ok(err)
	s.Cleanup(func() { d.Close() })
	return d
}

func (s *lvmScene) write(d lun.Device, b []byte, off int64) {
	s.Helper()
	_, err := d.WriteAt(b, off)
	s.ok(err)
}

func (s *lvmScene) read(d lun.Device) []byte {
	s.Helper()
	b := make([]byte, d.Size())
	for off := 0; off < len(b); off += 1 << 20 {
		_, err := d.ReadAt(b[off:min(off+1<<20, len(b))], int64(off))
		s.ok(err)
	}
	return b
}

// create makes a set that nobody sees.
func (s *lvmScene) create() orchestrator.Set {
	s.Helper()
	set, err := s.engine.Create(s.Context(), orchestrator.Request{VMs: []string{"db"}, Level: orchestrator.LevelFilesystem, AllowUnmirrored: true})
	s.ok(err)
	set, err = s.engine.Wait(s.Context(), set.ID, nil)
	s.ok(err)
	if set.State != orchestrator.StateReady {
		s.Fatalf("set is %s: %s", set.State, set.Reason)
	}
	return set
}

// presented is what the clean LUNs of a set hold, disk by disk: the view's, or
// the split's itself.
func (s *lvmScene) presented(set orchestrator.Set) [][]byte {
	s.Helper()
	var out [][]byte
	for _, l := range set.LUNs {
		if !l.Clean {
			continue
		}
		if l.Socket == "" {
			d, err := s.client.Open(s.Context(), driver.SnapshotID(l.Split))
			s.ok(err)
			out = append(out, s.read(d))
			s.ok(d.(io.Closer).Close())
			continue
		}
		d, err := nbd.Dial(s.Context(), "unix", l.Socket, nbd.ClientOptions{Export: l.Export})
		s.ok(err)
		out = append(out, s.read(d))
		s.ok(d.Close())
	}
	if len(out) != len(s.disks) {
		s.Fatalf("%d clean LUNs of %d disks: %+v", len(out), len(s.disks), set.LUNs)
	}
	return out
}

// sumOf is the sum of a volume on disks of these contents; the snapshot has to be
// gone from them.
func (s *lvmScene) sumOf(disks [][]byte) string {
	s.Helper()
	var sources []open.Source
	for _, b := range disks {
		sources = append(sources, open.Source{Device: luntest.ReadOnly(b)})
	}
	c, err := open.Probe(s.Context(), sources...)
	s.ok(err)
	for _, err := range c.Damage {
		s.Errorf("damage: %v", err)
	}
	if _, err := c.Volume(s.snapshot); !errors.Is(err, open.ErrNotFound) {
		s.Errorf("%s is still there: %v", s.snapshot, err)
	}
	v, err := c.Volume(s.volume)
	s.ok(err)
	d, err := v.Open()
	s.ok(err)
	got := sha256.Sum256(s.read(d))
	return hex.EncodeToString(got[:])
}

// incremental brings copies of one set up to another's by the diff's regions
// alone, and wants them equal to what the other presents.
func (s *lvmScene) incremental(from, to orchestrator.Set, copies, want [][]byte) {
	s.Helper()
	d, err := s.engine.Diff(s.Context(), to.ID, from.ID)
	s.ok(err)
	for i, x := range d.Disks {
		b := bytes.Clone(copies[i])
		for _, r := range x.Regions {
			copy(b[r.Offset:r.Offset+r.Length], want[i][r.Offset:])
		}
		if !bytes.Equal(b, want[i]) {
			at := 0
			for b[at] == want[i][at] {
				at++
			}
			s.Errorf("disk %s: byte %d differs and is in no region", x.Device, at)
		}
		if x.Total == 0 || x.Total > int64(len(b))*9/10 {
			s.Errorf("disk %s: %d of %d bytes are told to differ", x.Device, x.Total, len(b))
		}
		s.Logf("disk %s: %d regions, %d of %d bytes", x.Device, len(x.Regions), x.Total, len(b))
	}
}

// TestRecoveredSetsOnTheEmbeddedArray: sets over volumes of the embedded array
// that hold what a guest's LVM has written; recovered as views and in place,
// compared, backed up incrementally, resynchronised, reverted to and broken off.
func TestRecoveredSetsOnTheEmbeddedArray(t *testing.T) {
	for _, tc := range []struct {
		name, volume, snapshot, sum string
		images                      []string
		consent                     bool  // to the loss of other snapshots
		within                      int64 // an offset within the volume, on the first disk; 0: none is known
	}{
		{"thick", "vgo1/root", "vgo1/snap", "f5cf5ccee67535499a4ed3b24ca9a38a84aeb3bdc9e84554e054310145dbe23f", []string{"lvm-o1-thick-4k"}, false, 20 << 20},
		{"thin", "vgo3/tvol", "vgo3/tsnap", "d827e7b2a10cdbe4c7c45bcd133c91a2efdc4f1ffeb4dee82f12cac22f8524c7", []string{"lvm-o3-thin"}, false, 0},
		{"two disks", "vgo4/str", "vgo4/good", "d5b583b019a19187dd4aa6a1b6b42055552eeb29900dbf73ade4ee54ba2bf522", []string{"lvm-o4-a", "lvm-o4-b"}, true, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newLVMScene(t, tc.volume, tc.snapshot, tc.sum, tc.images...)
			s.lifeOfSets(tc.consent, tc.within)
		})
	}
}

func (s *lvmScene) lifeOfSets(consent bool, within int64) {
	ctx := s.Context()
	monday := s.create()
	mondays := s.presented(monday)
	if got := s.sumOf(mondays); got != s.sum {
		s.Errorf("Monday's view: %s is %s, want %s", s.volume, got, s.sum)
	}
	// Production goes on: within the volume, and at the end of each disk, which is
	// free.
	if within > 0 {
		s.write(s.disks[0].dev, bytes.Repeat([]byte{0x3e}, 4096), within)
	}
	// The guest's snapshot is another one, which preserves less: what a clean LUN
	// shows changes where the array saw no write.
	if s.table > 0 {
		s.write(s.disks[0].dev, make([]byte, 128*16), s.table)
	}
	for i, d := range s.disks {
		s.write(d.dev, bytes.Repeat([]byte{0xc1, byte(i)}, 6<<10), d.dev.Size()-200<<10)
		s.ok(d.dev.Sync())
	}
	tuesday := s.create()
	tuesdays := s.presented(tuesday)
	s.incremental(monday, tuesday, mondays, tuesdays)

	// Monday's splits themselves: refused without consent, cut off, and gone on with.
	before := s.splits(monday)
	if consent {
		if got, err := s.engine.Recover(ctx, monday.ID, orchestrator.RecoverRequest{}); !errors.Is(err, orchestrator.ErrUsage) || got.State != orchestrator.StateReady {
			s.Errorf("without consent: %s, %v", got.State, err)
		}
		s.same("after a refusal", s.splits(monday), before)
	}
	s.views.cuts = 1
	req := orchestrator.RecoverRequest{DiscardOthers: consent}
	if got, err := s.engine.Recover(ctx, monday.ID, req); err == nil || got.State != orchestrator.StateRecovering {
		s.Fatalf("cut off: %s, %v", got.State, err)
	}
	s.engine.Close()
	s.start() // which goes on with it
	monday, err := s.engine.Wait(ctx, monday.ID, nil)
	s.ok(err)
	if monday.State != orchestrator.StateReady || monday.Splits[0].State != string(driver.Skewed) || monday.Splits[0].Recovery != orchestrator.RecoveredInPlace {
		s.Fatalf("after the restart: %s (%s), %+v", monday.State, monday.Reason, monday.Splits[0])
	}
	clean := s.presented(monday)
	if got := s.sumOf(clean); got != s.sum {
		s.Errorf("recovered in place: %s is %s, want %s", s.volume, got, s.sum)
	}
	for i, x := range monday.Splits {
		outside := bytes.Clone(clean[i])
		for _, r := range x.Rewritten {
			copy(outside[r.Offset:r.Offset+r.Length], before[i][r.Offset:])
		}
		s.same("outside of what was rewritten", [][]byte{outside}, before[i:i+1])
	}
	s.incremental(monday, tuesday, clean, tuesdays)
	s.incremental(tuesday, monday, tuesdays, clean)
	s.exposed(monday, clean)

	// What is written to a view is among its differences.
	l := tuesday.LUNs[0]
	view, err := nbd.Dial(ctx, "unix", l.Socket, nbd.ClientOptions{Export: l.Export})
	s.ok(err)
	s.write(view, bytes.Repeat([]byte{0x77}, 4096), view.Size()-64<<10)
	if _, err := s.engine.Recover(ctx, tuesday.ID, req); !errors.Is(err, orchestrator.ErrBusy) {
		s.Errorf("in place while its view is read: %v", err)
	}
	s.ok(view.Close())
	tuesdays = s.presented(tuesday)
	s.incremental(monday, tuesday, clean, tuesdays)

	s.backInSync(tuesday, consent)
	s.brokenOff(consent)
	s.reverted(monday, clean)
}

// splits is what the splits of a set hold.
func (s *lvmScene) splits(set orchestrator.Set) [][]byte {
	s.Helper()
	var out [][]byte
	for _, x := range set.Splits {
		d, err := s.client.Open(s.Context(), driver.SnapshotID(x.ID))
		s.ok(err)
		out = append(out, s.read(d))
		s.ok(d.(io.Closer).Close())
	}
	return out
}

func (s *lvmScene) same(what string, got, want [][]byte) {
	s.Helper()
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			s.Errorf("%s: disk %d has changed", what, i)
		}
	}
}

// exposed: the clean splits are LUNs that can be written to; what is exposed is
// not recovered in place.
func (s *lvmScene) exposed(set orchestrator.Set, want [][]byte) {
	s.Helper()
	set, err := s.engine.Expose(s.Context(), set.ID, orchestrator.ExposeRequest{Initiators: []string{backup}, Writable: true})
	s.ok(err)
	for i, l := range set.LUNs {
		d := s.login(driver.Path{Portals: l.Portals, IQN: l.IQN, LUN: l.LUN}, backup, l.Writable)
		s.same("over iSCSI", [][]byte{s.read(d)}, want[i:i+1])
		s.ok(d.(io.Closer).Close())
	}
	_, err = s.engine.Unexpose(s.Context(), set.ID)
	s.ok(err)
}

// backInSync recovers a set in place and gives it back: only what changed is
// copied, and the mirrors hold what production wrote.
func (s *lvmScene) backInSync(set orchestrator.Set, consent bool) {
	s.Helper()
	ctx := s.Context()
	set, err := s.engine.Expose(ctx, set.ID, orchestrator.ExposeRequest{Initiators: []string{backup}})
	s.ok(err)
	if _, err := s.engine.Recover(ctx, set.ID, orchestrator.RecoverRequest{DiscardOthers: consent}); !errors.Is(err, orchestrator.ErrBusy) {
		s.Errorf("in place while it is exposed: %v", err)
	}
	_, err = s.engine.Unexpose(ctx, set.ID)
	s.ok(err)
	set, err = s.engine.Recover(ctx, set.ID, orchestrator.RecoverRequest{DiscardOthers: consent})
	s.ok(err)
	infos, err := s.client.Snapshots(ctx)
	s.ok(err)
	for _, x := range set.Splits {
		for _, info := range infos {
			if string(info.ID) == x.ID && (info.ResyncBytes == 0 || info.ResyncBytes > x.Size*9/10) {
				s.Errorf("a resync of %s copies %d of %d bytes", x.ID, info.ResyncBytes, x.Size)
			}
		}
	}
	if set, err = s.engine.Release(ctx, set.ID); err != nil || set.State != orchestrator.StateReleased {
		s.Fatalf("release: %s, %v", set.State, err)
	}
	s.mirrored()
}

// mirrored wants all mirrors of all volumes to hold what production reads.
func (s *lvmScene) mirrored() {
	s.Helper()
	for _, d := range s.disks {
		s.ok(s.client.WaitInSync(s.Context(), d.id))
		_, err := s.client.StartScrub(s.Context(), d.id, false)
		s.ok(err)
		scrub, err := s.client.WaitScrub(s.Context(), d.id)
		s.ok(err)
		if scrub.Differing != 0 || scrub.Mirrors < 2 {
			s.Errorf("scrub of %d mirrors: %d bytes differ", scrub.Mirrors, scrub.Differing)
		}
		v, err := s.client.Volume(s.Context(), d.id)
		s.ok(err)
		want := s.read(d.dev)
		for _, m := range v.Replicas {
			got, err := os.ReadFile(m.File)
			s.ok(err)
			s.same("the mirror "+m.File, [][]byte{got}, [][]byte{want})
		}
	}
}

// brokenOff makes volumes of a set that was recovered in place.
func (s *lvmScene) brokenOff(consent bool) {
	s.Helper()
	ctx := s.Context()
	set, err := s.engine.Recover(ctx, s.create().ID, orchestrator.RecoverRequest{DiscardOthers: consent})
	s.ok(err)
	want := s.presented(set)
	set, err = s.engine.Break(ctx, set.ID)
	s.ok(err)
	for i, x := range set.Splits {
		p, err := s.client.ExposeVolume(ctx, driver.VolumeID(x.Became), []string{backup}, false)
		s.ok(err)
		d := s.login(p, backup, true)
		s.same("broken off", [][]byte{s.read(d)}, want[i:i+1])
	}
}

// reverted puts production back to the clean content.
func (s *lvmScene) reverted(set orchestrator.Set, want [][]byte) {
	s.Helper()
	ctx := s.Context()
	s.vm.SetPower("db", orchestrator.Off)
	for _, d := range s.disks {
		s.ok(d.dev.(io.Closer).Close())
		s.ok(s.client.UnexposeVolume(ctx, d.id))
	}
	set, err := s.engine.Revert(ctx, set.ID)
	s.ok(err)
	for i := range s.disks {
		d := &s.disks[i]
		p, err := s.client.ExposeVolume(ctx, d.id, []string{production}, false)
		s.ok(err)
		d.dev = s.login(p, production, true)
		s.same("reverted", [][]byte{s.read(d.dev)}, want[i:i+1])
	}
	s.mirrored()
	for _, x := range set.Splits {
		if strings.TrimSpace(x.SafePoint) == "" {
			s.Errorf("volume %s has no safe point", x.Volume)
		}
	}
}
