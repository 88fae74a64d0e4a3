package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/cleave-san/cleave/iscsi"
)

func (a *app) lunServeCommand() *cobra.Command {
	var target targetFlags
	var from loginFlags
	c := &cobra.Command{
		Use:   "serve SRC --portal ADDRESS:PORT --iqn IQN",
		Short: "Serve a file, a block device or another target's LUN by iSCSI",
		Long: `Serve a file, a block device or a LUN (iscsi://[USER@]HOST[:PORT]/IQN/LUN) as LUN 0 of an iSCSI target, until SIGINT or SIGTERM.
What initiators write goes to SRC itself, unless --read-only is given; a file or a device that somebody else serves or has mounted is
refused.

It listens on the one portal and nowhere else. Started again with the same SRC and IQN, the LUN has the same identity.`,
		Example: `  cleave lun serve disk.img --portal 127.0.0.1:3260 --iqn iqn.2026-01.org.example:disk
  cleave lun serve /dev/vg/lv --portal 192.0.2.10:3260 --iqn iqn.2026-01.org.example:lv --initiator iqn.1993-08.org.debian:01:host1
  cleave lun serve disk.img --read-only --portal 192.0.2.10:3260 --iqn iqn.2026-01.org.example:disk --chap-user host1 --chap-secret-file host1.secret`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			login, err := from.login(args)
			if err != nil {
				return err
			}
			o, err := target.options()
			if err != nil {
				return err
			}
			o.Sources = LUNSources{Paths: args, Raw: true, Login: login}
			return a.serveLUNs(c.Context(), o)
		},
	}
	target.add(c.Flags())
	from.add(c.Flags())
	return c
}

// targetFlags say where LUNs are served, under which name and to whom.
type targetFlags struct {
	portal, iqn, user, secretFile string
	initiators                    []string
	readOnly                      bool
}

func (t *targetFlags) add(f *pflag.FlagSet) {
	f.StringVar(&t.portal, "portal", "", "ADDRESS:PORT to serve iSCSI on; port 0 takes a free one")
	f.StringVar(&t.iqn, "iqn", "", "name of the iSCSI target")
	f.StringArrayVar(&t.initiators, "initiator", nil, "IQN of an initiator that may log in; repeat it for several (default: any)")
	f.StringVar(&t.user, "chap-user", "", "CHAP name by which initiators prove themselves")
	f.StringVar(&t.secretFile, "chap-secret-file", "", "file with its secret, of 12 to 256 bytes, readable by its owner only")
	f.BoolVar(&t.readOnly, "read-only", false, "refuse writes")
}

// given reports whether any of the flags is there.
func (t *targetFlags) given() bool {
	return t.portal+t.iqn+t.user+t.secretFile != "" || len(t.initiators) > 0 || t.readOnly
}

func (t *targetFlags) options() (o LUNOptions, err error) {
	switch {
	case t.portal == "":
		return o, usagef("--portal is missing: name the ADDRESS:PORT to serve iSCSI on")
	case t.iqn == "":
		return o, usagef("--iqn is missing: name the iSCSI target, as in iqn.2026-01.org.example:disk")
	case (t.user == "") != (t.secretFile == ""):
		return o, usagef("--chap-user and --chap-secret-file go together")
	}
	if o.Portal, err = iscsi.ParsePortal(t.portal); err != nil {
		return o, usagef("--portal: %w", err)
	}
	if o.IQN, err = iscsi.ParseName(t.iqn); err != nil {
		return o, usagef("--iqn: %w", err)
	}
	for _, s := range t.initiators {
		n, err := iscsi.ParseName(s)
		if err != nil {
			return o, usagef("--initiator: %w", err)
		}
		o.Initiators = append(o.Initiators, n)
	}
	o.User, o.ReadOnly = t.user, t.readOnly
	_, o.Secret, err = readSecret("--chap-secret-file", t.user, t.secretFile)
	return o, err
}

// serveLUNs serves until ctx ends, which is success: it is how one is told to
// stop.
func (a *app) serveLUNs(ctx context.Context, o LUNOptions) error {
	log, err := a.logger()
	if err != nil {
		return err
	}
	return lunError(a.parts.ServeLUNs(ctx, o, func(luns []ServedLUN) error {
		if len(o.Initiators) == 0 {
			a.note(o)
		}
		return a.print(servedResult(luns))
	}, log))
}

// note says who may log in where nobody was named.
func (a *app) note(o LUNOptions) {
	text := "any initiator may log in and read"
	if !o.ReadOnly {
		text += " and write"
	}
	if o.User == "" {
		text += "; --initiator names those that may, --chap-user and --chap-secret-file have them prove it"
	} else {
		text += " that proves to be " + o.User
	}
	say(a.Err, "note", text)
}

func servedResult(luns []ServedLUN) result {
	var names []string
	for _, l := range luns {
		names = append(names, l.URL)
	}
	return result{value: list("luns", luns), names: names, text: func(w io.Writer, p *paper) error {
		t := table{head: []string{"URL", "SOURCE", "SIZE", "ACCESS", "RECOVERED", "+NAA"}}
		for _, l := range luns {
			access := "read-only"
			if l.Writable {
				access = "writable"
			}
			t.add(l.URL, l.Source, size(l.Size), access, recoveredText(l.Recovered), l.NAA)
		}
		p.draw(w, t)
		if len(luns) > 0 {
			luns[0].NewIdentity.draw(w, p)
		}
		return nil
	}}
}

// recoveredText says which volumes show which snapshots.
func recoveredText(all []Recovered) string {
	var texts []string
	for _, r := range all {
		one := fmt.Sprintf("%s from %s", r.Volume, r.Snapshot)
		if len(r.Discarded) > 0 {
			one += " (without " + strings.Join(r.Discarded, ", ") + ")"
		}
		texts = append(texts, one)
	}
	return strings.Join(texts, ", ")
}
