package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/cleave-san/cleave/orchestrator"
)

// finding is one line of the doctor's.
type finding struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, warning or failed
	Detail string `json:"detail"`
	Try    string `json:"try,omitempty"`
	err    error
}

func (a *app) doctorCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check that everything is reachable, permitted and synchronised",
		Long: `Check that both planes answer, that hosts and guests do, that every VM can be
backed up, that mirrors are in sync and pools have room, that this host's kernel
confines the processes that open guests' disks, and that its udev leaves attached
devices alone. With the configuration, every array in it is asked how it is, and what the
next set would not get by with there. Nothing is changed.

A warning leaves the exit status 0; a failure sets it by its kind.`,
		Example: `  cleave doctor
  cleave doctor --config /etc/cleave/cleave.yaml
  cleave doctor -o json | jq '.findings[] | select(.result != "ok")'`,
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
			a.examineControl(c.Context(), add, warn)
			if a.parts.Storage != nil {
				a.examineStorage(c.Context(), add, warn)
			}
			if config != "" && a.parts.Arrays != nil {
				a.examineArrays(c.Context(), config, add, warn)
			}
			if a.parts.Confinement != nil {
				a.examineConfinement(c.Context(), add, warn)
			}
			if a.parts.Attach != nil {
				a.examineAttach(add, warn)
			}
			if err := a.print(findings(found)); err != nil {
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
	cmd.Flags().StringVar(&config, "config", "", "the configuration, for its arrays")
	return cmd
}

// examineArrays asks each array of a configuration.
func (a *app) examineArrays(ctx context.Context, config string, add func(string, string, error) bool, warn func(string, string, string)) {
	found, err := a.parts.Arrays(ctx, config, a.arraySocket)
	if err != nil {
		add("arrays", "", err)
		return
	}
	for _, x := range found {
		check := "array " + x.Name
		switch x.State {
		case ArraySilent:
			add(check, "", x.Err)
		case ArrayProblems:
			warn(check, x.Detail, "`cleave array list --config "+config+"`")
		default:
			add(check, fmt.Sprintf("%s, %d volumes", x.Type, x.Volumes), nil)
		}
	}
}

func (a *app) examineControl(ctx context.Context, add func(string, string, error) bool, warn func(string, string, string)) {
	var vms []orchestrator.VM
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
}

func (a *app) examineStorage(ctx context.Context, add func(string, string, error) bool, warn func(string, string, string)) {
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
		return
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

func findings(found []finding) result {
	var names []string
	for _, f := range found {
		if f.Result != "ok" {
			names = append(names, f.Check)
		}
	}
	return result{value: list("findings", found), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"CHECK", "RESULT", "DETAIL", "TRY"}}
		for _, f := range found {
			t.add(f.Check, f.Result, f.Detail, f.Try)
		}
		p.draw(w, t)
		return nil
	}}
}
