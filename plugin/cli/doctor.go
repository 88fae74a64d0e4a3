package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/arrays/driver"
	"github.com/cleave-san/cleave/orchestrator"
)

// finding is one line of the doctor's.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warning, failed or unknown
	Detail string `json:"detail"`
	Try    string `json:"try,omitempty"`
	// Of an array: which one, what it is about, and the numbers behind it.
	Array string        `json:"array,omitempty"`
	Area  driver.Area   `json:"area,omitempty"`
	Limit *driver.Limit `json:"limit,omitempty"`
	err   error
}

func (a *app) doctorCommand() *cobra.Command {
	var config string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that everything is reachable, permitted and synchronised",
		Long: `Check that both planes answer, that hosts and guests do, that every VM can be
backed up, that mirrors are in sync and pools have room, that this host's kernel
confines the processes that open guests' disks, and that its udev leaves attached
devices alone. Nothing is changed.

Every array of the configuration (without one: that at the array's control socket) is
looked at for the next set, which is one of all VMs that are known, or else of one
volume: whether and how soon it answers, which calls would be refused, what it can do,
what of its limits is used and left, and what the set would not fit. What can't be told
without changing something is unknown. One that gives no answer within --array-limit
has failed; all are asked at once.

A warning leaves the exit status 0; a failure sets it by its kind. No secret is
printed, so that the output can be sent to somebody.`,
		Example: `  cleave doctor
  cleave doctor --config /etc/cleave/cleave.yaml
  cleave doctor -o json | jq '.findings[] | select(.result != "ok")'
  cleave doctor --config /etc/cleave/cleave.yaml -o json | jq '.findings[] | select(.limit) | {check, limit}'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var found []finding
			add := func(check, detail string, err error) bool {
				f := finding{Check: check, Result: "ok", Detail: detail, err: err}
				if err != nil {
					f.Result, f.Detail = "failed", err.Error()
					_, f.Try = exitOf(err)
				}
				found = append(found, f)
				return err == nil
			}
			warn := func(check, detail, try string) {
				found = append(found, finding{Check: check, Result: "warning", Detail: detail, Try: try})
			}
			vms := a.examineControl(c.Context(), add, warn)
			examined, err := a.examineArrays(c.Context(), config, limit, vms)
			// What is found at an array is not told a second time.
			told := slices.ContainsFunc(examined, func(x Examination) bool { return x.Socket != "" && samePath(x.Socket, a.arraySocket) })
			answers := a.parts.Storage != nil && a.examineStorage(c.Context(), told, add, warn)
			if err != nil {
				add("arrays", "", err)
			}
			if config == "" && !answers {
				examined = nil // the array at the socket has been told of
			}
			for _, x := range examined {
				found = append(found, arrayFindings(x)...)
			}
			if a.parts.Confinement != nil {
				a.examineConfinement(c.Context(), add, warn)
			}
			if a.parts.Attach != nil {
				a.examineAttach(add, warn)
			}
			if err := a.print(findings(found, examined)); err != nil {
				return err
			}
			for _, f := range found {
				if f.err != nil {
					code, _ := exitOf(f.err)
					return status(code)
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&config, "config", a.env("CLEAVE_CONFIG"), "the configuration, for its arrays")
	cmd.Flags().DurationVar(&limit, "array-limit", 30*time.Second, "how long each array may take to answer")
	return cmd
}

func (a *app) examineControl(ctx context.Context, add func(string, string, error) bool, warn func(string, string, string)) (vms []orchestrator.VM) {
	var verdicts []orchestrator.Verdict
	err := a.withControl(func(s Control) error {
		release, err := s.Version(ctx)
		if !add("control plane", release+" at "+a.socket, a.explainSocket(err, "start `cleave serve`, or name its socket by --socket")) {
			return nil
		}
		if release != a.parts.Release {
			warn("control plane", fmt.Sprintf("it is release %s, this command %s", release, a.parts.Release), "restart `cleave serve`")
		}
		if vms, err = s.VMs(ctx); err != nil {
			return err
		}
		verdicts, err = s.Explain(ctx, "")
		return err
	})
	if err != nil || vms != nil {
		add("hosts", fmt.Sprintf("%d VMs known", len(vms)), err)
	}
	said := map[string]bool{}
	for _, vm := range vms {
		if vm.Problem != "" {
			said[vm.Name] = true
			warn("VM "+vm.Name, vm.Problem, "`cleave explain "+vm.Name+"`")
		}
	}
	for _, v := range verdicts {
		if v.Class == orchestrator.NotPossible && !said[v.VM] {
			warn("VM "+v.VM, "can't be backed up: "+v.Reason, "`cleave explain "+v.VM+"`")
		}
	}
	return vms
}

// examineStorage reports whether the data plane answers. told: how its volumes and
// pools are is told by the array that it is.
func (a *app) examineStorage(ctx context.Context, told bool, add func(string, string, error) bool, warn func(string, string, string)) bool {
	var volumes []Volume
	var pools []Pool
	err := a.withStorage(func(s Storage) (err error) {
		if volumes, err = s.Volumes(ctx); err != nil {
			return err
		}
		pools, err = s.Pools(ctx)
		return err
	})
	if !add("data plane", fmt.Sprintf("%d volumes at %s", len(volumes), a.arraySocket), err) {
		return false
	}
	if told {
		return true
	}
	for _, v := range volumes {
		if n := inSync(v); n < 2 {
			warn("volume "+v.Name, fmt.Sprintf("%d of %d mirrors in sync", n, v.Wanted), "`cleave mirror status "+v.Name+"`")
		}
	}
	for _, p := range pools {
		switch {
		case p.Reason != "":
			warn("pool "+p.Name, p.Reason, "check "+p.Dir)
		case p.Free < p.Size/20:
			warn("pool "+p.Name, size(p.Free)+" free of "+size(p.Size), "free space in "+p.Dir)
		}
	}
	return true
}

func (a *app) examineConfinement(ctx context.Context, add func(string, string, error) bool, warn func(string, string, string)) {
	const check = "recovery worker"
	c, err := a.parts.Confinement(ctx)
	switch {
	case err != nil:
		add(check, "", err)
	case len(c.Allowed) > 0:
		warn(check, "confined by "+c.Means+" alone, it could "+strings.Join(c.Allowed, ", ")+": "+strings.Join(c.Missing, "; "),
			"boot a kernel with seccomp and Landlock (lsm=landlock,…)")
	case len(c.Missing) > 0:
		warn(check, "confined by "+c.Means+": "+strings.Join(c.Missing, "; "), "boot a kernel with both seccomp and Landlock (lsm=landlock,…)")
	default:
		add(check, "confined by "+c.Means, nil)
	}
}

// examineAttach looks at what keeps this host off attached devices, and for
// devices that work no longer.
func (a *app) examineAttach(add func(string, string, error) bool, warn func(string, string, string)) {
	const check = "udev rules"
	path, err := a.parts.Attach.CheckRules()
	switch {
	case err != nil:
		warn(check, err.Error(), "`cleave lun udev-rules >/etc/udev/rules.d/59-cleave-attach.rules && udevadm control --reload`")
	case path == "":
		add(check, "no udev runs here", nil)
	default:
		add(check, path, nil)
	}
	all, err := a.parts.Attach.List()
	if err != nil {
		warn("attachments", err.Error(), "run it as root")
	}
	for _, at := range all {
		if at.State == "dead" || at.State == "incomplete" || at.State == "gone" {
			warn("attachment "+at.ID, fmt.Sprintf("%s of %s is %s", at.Device, at.Source, at.State), "`cleave lun detach "+at.ID+"`")
		}
	}
}

func findings(found []finding, examined []Examination) result {
	var names []string
	for _, f := range found {
		if f.Result != "ok" {
			names = append(names, f.Check)
		}
	}
	type array struct {
		Name string `json:"name"`
		Type string `json:"type"`
		Took int64  `json:"tookMs"`
		*driver.Description
	}
	var of []array
	for _, x := range examined {
		of = append(of, array{x.Array, x.Type, x.Took, x.Description})
	}
	value := ordered{{"version", 1}, {"findings", some(found)}, {"arrays", some(of)}}
	return result{value: value, names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"CHECK", "RESULT", "DETAIL", "TRY"}}
		for _, f := range found {
			t.add(f.Check, f.Result, f.Detail, f.Try)
		}
		p.draw(w, t)
		return nil
	}}
}
