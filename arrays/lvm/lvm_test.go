package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/cleave-san/cleave/arrays/driver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	mirrorUUID = "6qNzd6-RCzz-2Yy8-Lbb5-xRlc-hzvr-V5vVEs"
	imageUUID  = "IJvaYg-WffO-Wezp-vRoc-DBEx-aGkA-NoFIu6"
	plainUUID  = "z15c4d-Us29-weZ1-P4il-lVoD-IfCA-Orqzh8"
	thinUUID   = "1ozYJ1-BF1I-Ev2R-DwtV-BCo1-tLqc-J51eQF"
)

// recorded is a reply of lvm2's own, with some of its text replaced.
func recorded(t testing.TB, name string, replace ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.NewReplacer(replace...).Replace(string(b))
}

// played is lvm2 as it was recorded: each report is what the next lvs says, and the
// last one stays; every other command succeeds, or fails as fail says.
type played struct {
	t       *testing.T
	reports []string
	fail    map[string]error
	ran     []string
	vg      string // what vgs says
}

func (p *played) run(ctx context.Context, args ...string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotRun, err)
	}
	if !slices.Contains(args, "devices { scan_lvs = 0 }") {
		p.t.Errorf("%v may look into logical volumes", args)
	}
	if args[0] == "lvs" {
		r := p.reports[0]
		if len(p.reports) > 1 {
			p.reports = p.reports[1:]
		}
		return []byte(r), p.fail["lvs"]
	}
	if args[0] == "vgs" {
		return []byte(p.vg), p.fail["vgs"]
	}
	line := strings.Join(args[:slices.Index(args, "--config")], " ")
	p.ran = append(p.ran, line)
	return nil, p.fail[args[0]]
}

func newPlayed(t *testing.T, m Method, reports ...string) (*Driver, *played) {
	t.Helper()
	d, err := New(Options{Group: "vg0", Method: m})
	if err != nil {
		t.Fatal(err)
	}
	p := &played{t: t, reports: reports, fail: map[string]error{}}
	d.run = p.run
	d.path = func(_ *group, v *lv) (string, error) { return "/nowhere/" + v.name, nil }
	return d, p
}

func kindOf(err error) driver.Kind {
	if err == nil {
		return -1
	}
	return (&Driver{}).Kind(err)
}

const splitTags = "cleave.at=1700000000000,cleave.split=set-1"

func TestTrackedSplit(t *testing.T) {
	before, after := recorded(t, "fresh"), recorded(t, "tracked", "cleave.at=1700000000000,cleave.tag=set-1", splitTags)
	d, p := newPlayed(t, TrackedSplit, before, after)
	s, err := d.Split(t.Context(), "set-1", mirrorUUID)
	if err != nil {
		t.Fatal(err)
	}
	if s.ID != "set-1@"+imageUUID || s.Volume != mirrorUUID || s.Size != 16<<20 || s.Method != driver.MirrorSplit || s.State != driver.Split || s.At.Year() != 2023 {
		t.Errorf("%+v", s)
	}
	if len(p.ran) != 2 || !strings.HasPrefix(p.ran[0], "lvchange --addtag cleave.split=set-1 --addtag cleave.at=") || p.ran[1] != "lvconvert -y --splitmirrors 1 --trackchanges vg0/mirror" {
		t.Errorf("commands: %q", p.ran)
	}
	// Again, and under another tag.
	p.ran = nil
	again, err := d.Split(t.Context(), "set-1", mirrorUUID)
	if err != nil || again != s || len(p.ran) != 0 {
		t.Errorf("again: %+v, %v; %q", again, err, p.ran)
	}
	if _, err := d.Split(t.Context(), "set-2", mirrorUUID); kindOf(err) != driver.Busy {
		t.Errorf("another set: %v", err)
	}
	if err := d.Prepare(t.Context(), []driver.VolumeID{mirrorUUID}, driver.PrepareOptions{Tag: "set-2", AllowUnmirrored: true}); kindOf(err) != driver.Busy {
		t.Errorf("Prepare of another set: %v", err)
	}
	if err := d.Prepare(t.Context(), []driver.VolumeID{mirrorUUID}, driver.PrepareOptions{Tag: "set-1"}); err != nil {
		t.Errorf("Prepare of the set itself: %v", err)
	}
	if _, err := d.Rewrite(t.Context(), s.ID); kindOf(err) != driver.NotSupported {
		t.Errorf("Rewrite: %v", err)
	}
	ss, err := d.Lookup(t.Context(), "set-1")
	if err != nil || len(ss) != 1 || ss[0] != s {
		t.Errorf("Lookup: %+v, %v", ss, err)
	}
	if err := d.Delete(t.Context(), "set-2@"+imageUUID); err != nil || len(p.ran) != 0 {
		t.Errorf("Delete by another set's name: %v, %q", err, p.ran)
	}
	if err := d.Resync(t.Context(), s.ID); err != nil || !slices.Equal(p.ran, []string{
		"lvconvert -y --merge vg0/mirror_rimage_1", "lvchange --deltag cleave.at=1700000000000 --deltag cleave.split=set-1 vg0/mirror",
	}) {
		t.Errorf("Resync: %v, %q", err, p.ran)
	}
}

// TestFullCopy: what a split takes comes back by one method and not by the other.
func TestFullCopy(t *testing.T) {
	for m, want := range map[Method]bool{TrackedSplit: false, FullSplit: true, Snapshots: false} {
		d, _ := newPlayed(t, m, recorded(t, "fresh"))
		g, err := d.read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range g.lvs {
			if v.uuid == mirrorUUID && d.volume(g, v).FullCopy != want {
				t.Errorf("%s: full copy is %v", m, !want)
			}
		}
	}
}

func TestFullSplit(t *testing.T) {
	fresh := recorded(t, "fresh")
	// lvconvert was done, and nobody came to tag what came off.
	off := recorded(t, "split", "cleave.x=y", "", "cleave.tag=set-2", "cleave.at=1700000000000,cleave.mirrors=2,cleave.split=set-2")
	d, p := newPlayed(t, FullSplit, fresh, off)
	s, err := d.Split(t.Context(), "set-2", mirrorUUID)
	if err != nil || s.Method != driver.MirrorSplit || s.State != driver.Split || s.Volume != mirrorUUID {
		t.Fatalf("%+v, %v", s, err)
	}
	if len(p.ran) != 4 || !strings.Contains(p.ran[0], "--addtag cleave.mirrors=2") || p.ran[1] != "lvconvert -y --splitmirrors 1 --name cleave-set-2-mirror vg0/mirror" ||
		p.ran[2] != "lvchange --addtag cleave.tag=set-2 --addtag cleave.of="+mirrorUUID+" --addtag cleave.at=1700000000000 vg0/cleave-set-2-mirror" ||
		p.ran[3] != "lvchange --deltag cleave.at=1700000000000 --deltag cleave.split=set-2 vg0/mirror" {
		t.Errorf("commands: %q", p.ran)
	}
	// The next set copies the image that is missing.
	p.ran, p.reports = nil, []string{recorded(t, "split", "cleave.x=y", "", "cleave.tag=set-2", "cleave.mirrors=2"), recorded(t, "refilling", "cleave.tag=set-2", "cleave.mirrors=2")}
	o := driver.PrepareOptions{Tag: "set-5", AllowUnmirrored: true}
	if err := d.Prepare(t.Context(), []driver.VolumeID{mirrorUUID}, o); err != nil || !slices.Equal(p.ran, []string{"lvconvert -y --type raid1 -m 1 vg0/mirror"}) {
		t.Errorf("Prepare: %v, %q", err, p.ran)
	}
	// And the one after that, too: how many images there were is not forgotten.
	p.ran, p.reports = nil, []string{recorded(t, "refilling", "cleave.tag=set-2", "cleave.at=5,cleave.mirrors=2,cleave.split=set-4")}
	p.fail["lvconvert"] = &commandError{"lvconvert", 5, "enough"}
	if _, err := d.Split(t.Context(), "set-5", mirrorUUID); err == nil || len(p.ran) != 2 || strings.Contains(p.ran[0], "mirrors") ||
		!strings.HasSuffix(p.ran[0], "--deltag cleave.split=set-4 --deltag cleave.at=5 vg0/mirror") {
		t.Errorf("the second split: %v, %q", err, p.ran)
	}
	p.fail["lvconvert"] = nil
	p.reports = []string{fresh}
	if err := d.Prepare(t.Context(), []driver.VolumeID{mirrorUUID}, driver.PrepareOptions{Tag: "x"}); kindOf(err) != driver.NeedsConsent {
		t.Errorf("Prepare without consent: %v", err)
	}
	if err := d.Prepare(t.Context(), []driver.VolumeID{plainUUID}, o); kindOf(err) != driver.NotSupported {
		t.Errorf("Prepare of what has no mirror: %v", err)
	}
}

func TestSnapshots(t *testing.T) {
	tagged := func(name string) string {
		return recorded(t, name, "cleave.of=abc", "cleave.of="+plainUUID, "cleave.tag=set-4", "cleave.of="+thinUUID+",cleave.skewed,cleave.tag=set-4")
	}
	d, p := newPlayed(t, Snapshots, recorded(t, "fresh"), tagged("snapshots"))
	s, err := d.Split(t.Context(), "set-3", plainUUID)
	if err != nil || s.Size != 16<<20 || s.Method != driver.ArraySnapshot || s.State != driver.Synchronized {
		t.Fatalf("%+v, %v", s, err)
	}
	if len(p.ran) != 1 || !strings.HasPrefix(p.ran[0], "lvcreate -y -s -n cleave-set-3-plain --addtag cleave.tag=set-3 --addtag cleave.of="+plainUUID) || !strings.HasSuffix(p.ran[0], "-l 20%ORIGIN vg0/plain") {
		t.Errorf("commands: %q", p.ran)
	}
	if ss, err := d.Lookup(t.Context(), "set-4"); err != nil || len(ss) != 1 || ss[0].State != driver.Skewed || ss[0].Volume != thinUUID {
		t.Errorf("thin: %+v, %v", ss, err)
	}
	// Overflow only invalidates it, silently.
	p.reports = []string{tagged("overflow")}
	if ss, err := d.Lookup(t.Context(), "set-3"); err != nil || len(ss) != 1 || ss[0].State != driver.Invalid {
		t.Errorf("after its overflow: %+v, %v", ss, err)
	}
	if _, err := d.Open(t.Context(), s.ID); err == nil || !strings.Contains(err.Error(), "room of 5 MiB") {
		t.Errorf("Open after its overflow: %v", err)
	}
	p.ran = nil
	if err := d.Delete(t.Context(), s.ID); err != nil || !slices.Equal(p.ran, []string{"lvremove -y vg0/cleave-set-3-plain"}) {
		t.Errorf("Delete: %v, %q", err, p.ran)
	}
	o := driver.PrepareOptions{Tag: "x"}
	p.reports = []string{recorded(t, "fresh", `"vg_free":"3040870400"`, `"vg_free":"1048576"`)}
	if err := d.Prepare(t.Context(), []driver.VolumeID{plainUUID}, o); kindOf(err) != driver.NoSpace {
		t.Errorf("no room in the group: %v", err)
	}
	p.reports = []string{recorded(t, "fresh", `"metadata_percent":"11.91"`, `"metadata_percent":"95.20"`)}
	if err := d.Prepare(t.Context(), []driver.VolumeID{thinUUID}, o); kindOf(err) != driver.NoSpace {
		t.Errorf("no room in the pool's metadata: %v", err)
	}
}

// What is refused before anything is run.
func TestUnusable(t *testing.T) {
	for name, row := range map[string]struct {
		replace []string
		want    driver.Kind
		text    string
	}{
		"not active":      {[]string{`"lv_active":"active"`, `"lv_active":""`}, driver.Busy, "not active"},
		"shared":          {[]string{`"vg_lock_type":""`, `"vg_lock_type":"sanlock"`, `"lv_active_exclusively":"1"`, `"lv_active_exclusively":"0"`}, driver.Busy, "another host"},
		"suspended":       {[]string{`"lv_suspended":"0"`, `"lv_suspended":"1"`}, driver.Busy, "suspended"},
		"not in sync":     {[]string{`"sync_percent":"100.00"`, `"sync_percent":"12.50"`}, driver.NotSynchronized, "in sync"},
		"an image is not": {[]string{`"lv_image_synced":"1"`, `"lv_image_synced":"0"`}, driver.NotSynchronized, "in sync"},
		"another volume":  {[]string{mirrorUUID, "6qNzd6-RCzz-2Yy8-Lbb5-xRlc-hzvr-xxxxxx"}, driver.NotFound, "no volume"},
	} {
		t.Run(name, func(t *testing.T) {
			d, p := newPlayed(t, TrackedSplit, recorded(t, "fresh", row.replace...))
			if _, err := d.Split(t.Context(), "t", mirrorUUID); kindOf(err) != row.want || !strings.Contains(err.Error(), row.text) || len(p.ran) > 0 {
				t.Errorf("kind %v, %v; %q", kindOf(err), err, p.ran)
			}
		})
	}
	// An exclusive lock in a shared group is as good as a group of one's own.
	d, _ := newPlayed(t, TrackedSplit, recorded(t, "fresh", `"vg_lock_type":""`, `"vg_lock_type":"dlm"`))
	if err := d.Prepare(t.Context(), []driver.VolumeID{mirrorUUID}, driver.PrepareOptions{Tag: "t", AllowUnmirrored: true}); err != nil {
		t.Errorf("shared, and exclusive: %v", err)
	}
}

// What a command says counts less than what is there afterwards.
func TestFailedCommands(t *testing.T) {
	failed := &commandError{"lvconvert", 5, "no"}
	fresh, tracked := recorded(t, "fresh"), recorded(t, "tracked", "cleave.at=1700000000000,cleave.tag=set-1", splitTags)

	d, p := newPlayed(t, TrackedSplit, fresh, fresh)
	p.fail["lvconvert"] = failed
	if _, err := d.Split(t.Context(), "set-1", mirrorUUID); !errors.Is(err, failed) || kindOf(err) != driver.Unknown {
		t.Errorf("it failed, and nothing is there: kind %v, %v", kindOf(err), err)
	}
	d, p = newPlayed(t, TrackedSplit, fresh, tracked)
	p.fail["lvconvert"] = failed
	if s, err := d.Split(t.Context(), "set-1", mirrorUUID); err != nil || s.ID == "" {
		t.Errorf("it failed after the act: %+v, %v", s, err)
	}
	d, p = newPlayed(t, TrackedSplit, fresh, tracked)
	p.fail["lvconvert"] = &killedError{"lvconvert", context.DeadlineExceeded, true}
	if _, err := d.Split(t.Context(), "set-1", mirrorUUID); kindOf(err) != driver.OutcomeUnknown {
		t.Errorf("it was killed: kind %v, %v", kindOf(err), err)
	}
	// What was killed by force left the volume suspended.
	d, p = newPlayed(t, TrackedSplit, fresh, recorded(t, "fresh", `"lv_kernel_minor":"4", "lv_active":"active", "lv_active_exclusively":"1", "lv_permissions":"writeable", "lv_suspended":"0"`,
		`"lv_kernel_minor":"4", "lv_active":"active", "lv_active_exclusively":"1", "lv_permissions":"writeable", "lv_suspended":"1"`))
	p.fail["lvconvert"] = &killedError{"lvconvert", context.DeadlineExceeded, true}
	if _, err := d.Split(t.Context(), "set-1", mirrorUUID); kindOf(err) != driver.OutcomeUnknown || p.ran[len(p.ran)-1] != "lvchange --refresh vg0/mirror" {
		t.Errorf("kind %v; %q", kindOf(err), p.ran)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Split(ctx, "set-1", mirrorUUID); kindOf(err) != driver.Unreachable {
		t.Errorf("its context was over before: kind %v", kindOf(err))
	}
}

// A command that hangs, and one that hangs and does not listen.
func TestHangingCommand(t *testing.T) {
	for name, row := range map[string]struct {
		script string
		hard   bool
	}{
		"listens": {"sleep 1000", false},
		"deaf":    {"trap '' TERM; while :; do sleep 1000; done", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "lvm")
			if err := os.WriteFile(path, []byte("#!/bin/sh\n"+row.script+"\n"), 0o700); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			_, err := command(path)(ctx, "lvconvert")
			var killed *killedError
			if !errors.As(err, &killed) || killed.hard != row.hard || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestCommandsErrors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lvm")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nprintf '  Volume group \"x\\033\" not found\\n  WARNING: careful\\n' >&2; exit 5\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	_, err := command(path)(t.Context(), "lvs")
	if err == nil || err.Error() != `lvs ended with status 5: Volume group "x?" not found` {
		t.Errorf("%v", err)
	}
	if _, err := command("/nowhere/at/all")(t.Context(), "lvs"); !errors.Is(err, errNotRun) {
		t.Errorf("%v", err)
	}
	if v := versionOf([]byte("  LVM version:     2.03.16(2) (2022-05-18)\n  Library version: 1.02.185 (2022-05-18)\n")); v != "2.03.16(2)" {
		t.Errorf("version %q", v)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no group":    {Method: Snapshots},
		"an option":   {Group: "--help", Method: Snapshots},
		"no method":   {Group: "vg0"},
		"too much":    {Group: "vg0", Method: Snapshots, Room: 101},
		"two devices": {Group: "vg0", Method: Snapshots, Devices: []string{"/dev/a,/dev/b"}},
		"no device":   {Group: "vg0", Method: Snapshots, Devices: []string{"sda"}},
		"relative":    {Group: "vg0", Method: Snapshots, Program: "lvm"},
	} {
		if _, err := New(o); kindOf(err) != driver.InvalidRequest {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Hostile reports: a clear refusal, nothing run.
func TestHostileReports(t *testing.T) {
	fresh := recorded(t, "fresh")
	for name, row := range map[string]struct{ report, text string }{
		"nothing":          {"", "report of lvs"},
		"no JSON":          {"hello", "report of lvs"},
		"no report":        {`{"report": []}`, "0 of them"},
		"two":              {`{"report": [{"lv":[]},{"lv":[]}]}`, "2 of them"},
		"other group":      {strings.ReplaceAll(fresh, `"vg_name":"vg0"`, `"vg_name":"vg1"`), "want vg0"},
		"two of one name":  {strings.Replace(fresh, "1NITzj-6uOt-w7vR-SUto-MIul-akdQ-m4f2HM", "2NITzj-6uOt-w7vR-SUto-MIul-akdQ-m4f2HM", 1), "two volume groups"},
		"there twice":      {strings.ReplaceAll(fresh, plainUUID, thinUUID), "twice"},
		"no UUID":          {strings.ReplaceAll(fresh, plainUUID, "../../etc"), "no UUID"},
		"an option":        {strings.ReplaceAll(fresh, `"lv_name":"plain"`, `"lv_name":"--help"`), "no name"},
		"a path":           {strings.ReplaceAll(fresh, `"lv_name":"plain"`, `"lv_name":"../plain"`), "no name"},
		"no size":          {strings.ReplaceAll(fresh, `"lv_size":"16777216"`, `"lv_size":"16,00m"`), "no size"},
		"too large a size": {strings.ReplaceAll(fresh, `"lv_size":"16777216"`, `"lv_size":"99999999999999999999"`), "no size"},
		"no percentage":    {strings.ReplaceAll(fresh, `"sync_percent":"100.00"`, `"sync_percent":"NaN"`), "no percentage"},
		"no device number": {strings.ReplaceAll(fresh, `"lv_kernel_minor":"12"`, `"lv_kernel_minor":"12/../x"`), "no device number"},
		"a number":         {strings.ReplaceAll(fresh, `"lv_kernel_minor":"12"`, `"lv_kernel_minor":12`), "report of lvs"},
	} {
		t.Run(name, func(t *testing.T) {
			d, p := newPlayed(t, Snapshots, row.report)
			for what, call := range map[string]func() error{
				"Split":  func() error { _, err := d.Split(t.Context(), "t", plainUUID); return err },
				"Lookup": func() error { _, err := d.Lookup(t.Context(), "t"); return err },
				"Delete": func() error { return d.Delete(t.Context(), "t@"+plainUUID) },
			} {
				if err := call(); err == nil || !strings.Contains(err.Error(), row.text) || strings.Contains(err.Error(), "\n") {
					t.Errorf("%s: %v, want %q", what, err, row.text)
				}
			}
			if len(p.ran) > 0 {
				t.Errorf("it ran %q", p.ran)
			}
		})
	}
}

// FuzzReport reads hostile reports: an error, or names that are safe to be given to
// a command.
func FuzzReport(f *testing.F) {
	for _, name := range []string{"fresh", "tracked", "split", "snapshots", "overflow"} {
		f.Add([]byte(recorded(f, name)))
	}
	f.Add([]byte(`{"report":[{"lv":[]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := parse("vg0", b)
		if err != nil {
			return
		}
		for _, v := range g.lvs {
			if strings.HasPrefix(v.name, "-") || strings.ContainsAny(v.name, "/ \n") || v.size < 0 || v.minor < -1 {
				t.Errorf("%+v", v)
			}
			g.volume(v)
		}
		for _, s := range g.snapshots("") {
			if x := s.describe(); x.ID == "" || x.Volume == "" {
				t.Errorf("%+v", x)
			}
		}
	})
}
