package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/cleave-san/cleave/orchestrator"
)

// disksOfSets puts for each path that is a disk of a snapshot set, by the name of
// its LUN, where it is served, and tells the identities of what does not tell its
// own. There is an entry for each disk of a set, and nil says that there is none.
func (a *app) disksOfSets(ctx context.Context, paths []string) (out []string, identities map[string]string, err error) {
	for _, p := range paths {
		id, _, ok := strings.Cut(p, "/")
		set, err := setID(id)
		if !ok || err != nil {
			if identities != nil {
				return nil, nil, usagef("%s: disks of snapshot sets don't go together with others", p)
			}
			out = append(out, p)
			continue
		}
		if len(out) > len(identities) {
			return nil, nil, usagef("%s: disks of snapshot sets don't go together with others", p)
		}
		if identities == nil {
			identities = map[string]string{}
		}
		err = a.withControl(func(s Control) error {
			doc, err := s.Get(ctx, set)
			if err != nil {
				return err
			}
			where, naa, err := served(doc, p)
			out, identities[where] = append(out, where), naa
			return err
		})
		if err != nil {
			return nil, nil, err
		}
	}
	return out, identities, nil
}

// served is where a LUN of a set can be read; naa is for what can't be asked.
func served(set orchestrator.Set, name string) (where, naa string, err error) {
	var names []string
	for _, l := range set.LUNs {
		switch {
		case l.Name != name:
			names = append(names, l.Name)
		case l.Socket != "":
			return nbdURI(l.Export, l.Socket, "", false), l.NAA, nil
		case l.IQN != "" && len(l.Portals) > 0:
			return iscsiURL(l), "", nil
		default:
			return "", "", hint(fmt.Errorf("%s: %w: it is not served", name, orchestrator.ErrUsage), "`cleave snapshot expose %s --dirty --to IQN` makes it a LUN", set.ID)
		}
	}
	return "", "", hint(fmt.Errorf("%s: %w: snapshot set %s is %s and has %q", name, orchestrator.ErrNotFound, set.ID, set.State, names), "`cleave snapshot show %s` lists its LUNs", set.ID)
}
