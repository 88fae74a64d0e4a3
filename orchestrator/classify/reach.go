package classify

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cleave-san/cleave/orchestrator"
	"github.com/cleave-san/cleave/orchestrator/guest/wire"
)

// Evidence is what a set knows of one VM after its split.
type Evidence struct {
	Verdict orchestrator.Verdict
	// Expected are the guest's volumes as it listed them before the step.
	Expected []orchestrator.GuestVolume
	// Report of the guest step; Problem says why there is none to rely on.
	Report  wire.Report
	Problem string
	// ReportedBeforeSplit: the engine had the whole report before it asked for
	// the split (claim 1: only then).
	ReportedBeforeSplit bool
	// Groups has one entry for each split under the VM's disks: the group at
	// whose instant it was made, "" where the array guarantees no write order.
	Groups []string
	// Found tells for each in-guest snapshot (by UUID) what the split held:
	// "" for found and valid, else why not.
	Found map[string]string
	// Pause of the VM, and whether the split lay inside it.
	Pause       *orchestrator.Pause
	PauseHolds  bool
	SplitMethod string // for the evidence's wording
	// Unreadable says why the content of one of its disks on a host's volume can't
	// be read in the split ("" if all can, or none is there).
	Unreadable string
	// Flushed are the host's volumes under its disks that were flushed between the
	// guest's report and the split; Unflushed says why one was not.
	Flushed   []string
	Unflushed string
}

// Reached is a verdict from evidence.
type Reached struct {
	Level    orchestrator.Level
	Why      string   // why it is not the highest ("" if it is)
	Evidence []string // one line each
	Volumes  []orchestrator.VolumeResult
}

// Reach returns the level that the evidence proves, of the VM and of each of
// its volumes. It never trusts silence: what is not proved lowers the level.
func Reach(e Evidence) Reached {
	r := Reached{Level: orchestrator.LevelCrash}
	if e.Unreadable != "" {
		r.Level, r.Why = orchestrator.LevelNone, e.Unreadable
		return r
	}
	r.add("split at one instant by the array (%s)", e.SplitMethod)
	switch e.Verdict.How {
	case orchestrator.ByPause:
		r.Why = e.Verdict.Reason
		r.pause(e)
		return r
	case orchestrator.ByItself:
		r.Why = e.Verdict.Reason
		return r
	case orchestrator.ByGuest:
	}
	if why := reportProblem(e); why != "" {
		r.Why = why
		r.pause(e)
		return r
	}
	r.add("guest requester %s reported %d completions before the split was asked for", e.Report.Requester, len(e.Report.Completions))
	for _, at := range e.Flushed {
		r.add("host's volume %s flushed after that and before the split", at)
	}
	order := oneInstant(e.Groups)
	for _, v := range expected(e) {
		r.Volumes = append(r.Volumes, volume(e, v, order))
	}
	writerWhy := r.writers(e)
	r.settle(writerWhy)
	return r
}

func (r *Reached) add(format string, args ...any) {
	r.Evidence = append(r.Evidence, fmt.Sprintf(format, args...))
}

func (r *Reached) pause(e Evidence) {
	switch {
	case e.Pause == nil:
	case e.PauseHolds:
		r.add("paused for %s, the split inside the pause", e.Pause.For.Round(time.Millisecond))
	default:
		r.add("paused for %s, but the split lay outside the pause", e.Pause.For.Round(time.Millisecond))
	}
}

// reportProblem says why the guest's report proves nothing at all.
func reportProblem(e Evidence) string {
	switch {
	case e.Problem != "":
		return e.Problem
	case stepProblem(e.Report) != "":
		return stepProblem(e.Report)
	case !e.ReportedBeforeSplit:
		return "the guest's report came after the split was asked for"
	case e.Unflushed != "":
		return "whether its snapshot had reached the volume is not known: " + e.Unflushed
	}
	return ""
}

// stepProblem says why a guest step did not end well ("" if it did).
func stepProblem(rep wire.Report) string {
	switch {
	case rep.Failed != "":
		return "the guest step failed: " + rep.Failed
	case rep.Finished.IsZero():
		return "the guest never reported the end of its step"
	}
	return ""
}

// Incomplete says what a report lacks for the split to be asked for ("" if
// nothing): an end, and one whole completion for each volume that the guest had
// listed as able to. A volume that it had listed as unable is no lack: its level
// says so.
func Incomplete(volumes []orchestrator.GuestVolume, rep wire.Report) string {
	if why := stepProblem(rep); why != "" {
		return why
	}
	if len(rep.Completions) == 0 {
		return "the guest reported no volume"
	}
	for _, c := range rep.Completions {
		if !c.OK() {
			return fmt.Sprintf("guest volume %s: %s", c.Volume, cmp.Or(c.Error, "its completion is not whole"))
		}
	}
	for _, v := range volumes {
		if v.Cannot == "" && !slices.ContainsFunc(rep.Completions, func(c wire.Completion) bool { return c.VolumeID == v.UUID }) {
			return fmt.Sprintf("guest volume %s: no completion was reported", v.Name)
		}
	}
	return ""
}

// expected lists the volumes that need a completion: those the guest listed
// beforehand, and those it reported on besides.
func expected(e Evidence) []orchestrator.GuestVolume {
	vs := slices.Clone(e.Expected)
	for _, c := range e.Report.Completions {
		if !slices.ContainsFunc(vs, func(v orchestrator.GuestVolume) bool { return v.UUID == c.VolumeID }) {
			vs = append(vs, orchestrator.GuestVolume{Name: c.Volume, UUID: c.VolumeID, Kind: c.Kind, Mount: c.Mount, FS: c.FS})
		}
	}
	return vs
}

// volume judges one volume: its own snapshot, complete, in the split, whole.
func volume(e Evidence, v orchestrator.GuestVolume, order bool) orchestrator.VolumeResult {
	r := orchestrator.VolumeResult{Name: v.Name, UUID: v.UUID, Kind: v.Kind, Mount: v.Mount, Reached: orchestrator.LevelCrash}
	i := slices.IndexFunc(e.Report.Completions, func(c wire.Completion) bool { return c.VolumeID == v.UUID })
	if i < 0 {
		r.Why = "no completion was reported"
		if v.Cannot != "" {
			r.Why = v.Cannot
		}
		return r
	}
	c := e.Report.Completions[i]
	r.Snapshot, r.Kind, r.Began, r.Ended = c.Snapshot, c.Kind, c.Began, c.Ended
	if !c.OK() {
		r.Why = "its completion is not whole"
		if c.Error != "" {
			r.Why = "the guest could not snapshot it: " + c.Error
		}
		return r
	}
	why, looked := e.Found[c.Snapshot]
	switch {
	case !looked:
		r.Why = "its snapshot was not looked for in the split"
	case why != "":
		r.Why = why
	case !order:
		r.Found = true
		r.Why = "the VM's disks were not split at one instant"
	default:
		r.Found = true
		r.Reached = orchestrator.LevelFilesystem
	}
	return r
}

// writers raises the volumes of each writer that took part to application, and
// returns why not all writers of the data did ("" if all).
func (r *Reached) writers(e Evidence) string {
	why, apps := "", 0
	for _, w := range e.Report.Writers {
		switch w.State {
		case wire.WriterNotRunning:
			r.add("application writer %s: proved not running", w.App)
			continue
		case wire.WriterStable:
		default:
			why = fmt.Sprintf("application writer %s did not take part: %s", w.App, cmp.Or(w.Error, string(w.State)))
			continue
		}
		apps++
		if problem := r.raise(w, e.Report.Completions); problem != "" {
			why = problem
			continue
		}
		r.add("application writer %s took part (%s)", strings.TrimSpace(w.App+" "+w.Version), w.Method)
	}
	if apps == 0 && why == "" {
		why = "no application writer took part"
	}
	return why
}

// raise gives a writer's volumes their application level, if all of them are
// there and were held in one session where there are several.
func (r *Reached) raise(w wire.Writer, cs []wire.Completion) string {
	var names []string
	for _, c := range w.Components {
		names = append(names, c.Volumes...)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if len(names) == 0 {
		return fmt.Sprintf("application writer %s named no volume that holds its data", w.App)
	}
	for _, n := range names {
		i := slices.IndexFunc(r.Volumes, func(v orchestrator.VolumeResult) bool { return v.Name == n })
		if i < 0 {
			return fmt.Sprintf("%s keeps data on %s, which has no snapshot", w.App, n)
		}
		if r.Volumes[i].Reached < orchestrator.LevelFilesystem {
			return fmt.Sprintf("%s: volume %s: %s", w.App, n, r.Volumes[i].Why)
		}
	}
	if len(names) > 1 && !oneSession(w, names, cs) {
		for i := range r.Volumes {
			if slices.Contains(names, r.Volumes[i].Name) {
				r.Volumes[i].Reached = orchestrator.LevelCrash
				r.Volumes[i].Why = fmt.Sprintf("%s was not held in one session across its volumes", w.App)
			}
		}
		return fmt.Sprintf("%s spans %s, and was not held in one session across them", w.App, strings.Join(names, ", "))
	}
	for i := range r.Volumes {
		if slices.Contains(names, r.Volumes[i].Name) {
			r.Volumes[i].Reached = orchestrator.LevelApplication
		}
	}
	return ""
}

func oneSession(w wire.Writer, names []string, cs []wire.Completion) bool {
	if w.Session == "" {
		return false
	}
	for _, n := range names {
		i := slices.IndexFunc(cs, func(c wire.Completion) bool { return c.Volume == n })
		if i < 0 || cs[i].Session != w.Session {
			return false
		}
	}
	return true
}

// settle derives the VM's level: application needs every volume's own snapshot
// and every writer; below that a VM is as good as its worst volume.
func (r *Reached) settle(writerWhy string) {
	worst, name, why := orchestrator.LevelFilesystem, "", ""
	found := 0
	for _, v := range r.Volumes {
		if v.Found {
			found++
		}
		if v.Reached < worst {
			worst, name, why = v.Reached, v.Name, v.Why
		}
	}
	if found > 0 {
		r.add("%d of %d in-guest snapshots found by UUID in the split, valid", found, len(r.Volumes))
	}
	switch {
	case len(r.Volumes) == 0:
		r.Level, r.Why = orchestrator.LevelCrash, "the guest reported no volume"
	case worst < orchestrator.LevelFilesystem:
		r.Level, r.Why = worst, fmt.Sprintf("guest volume %s: %s", name, why)
	case writerWhy != "":
		r.Level, r.Why = orchestrator.LevelFilesystem, writerWhy
	default:
		r.Level = orchestrator.LevelApplication
	}
}

// oneInstant reports whether all splits belong to one group with write order.
// A single split is one instant by itself.
func oneInstant(groups []string) bool {
	switch len(groups) {
	case 0:
		return false
	case 1:
		return true
	}
	for _, g := range groups {
		if g == "" || g != groups[0] {
			return false
		}
	}
	return true
}
