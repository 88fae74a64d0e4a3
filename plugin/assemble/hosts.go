package assemble

import (
	"fmt"
	"log/slog"

	"github.com/cleave-san/cleave/iscsi"
)

// HostConfig is a host that LUNs are exposed to by its name: a backup host, a node of
// a cluster.
type HostConfig struct {
	Name       string   `koanf:"name"`
	Initiators []string `koanf:"initiators"` // IQNs
}

// checkHosts refuses hosts that can't be told apart, and brings their initiators'
// names into the form that targets use.
func (c *Config) checkHosts() error {
	names, of := map[string]string{}, map[string]string{}
	for i, h := range c.Hosts {
		at := fmt.Sprintf("hosts[%d]", i)
		if err := named(names, at, h.Name); err != nil {
			return err
		}
		if _, err := iscsi.ParseName(h.Name); err == nil {
			return usage("%s.name: %q is the name of an initiator", at, h.Name)
		}
		if len(h.Initiators) == 0 {
			return usage("%s.initiators: there are none", at)
		}
		for k, n := range h.Initiators {
			iqn, err := iscsi.ParseName(n)
			if err != nil {
				return usage("%s.initiators[%d]: %w", at, k, err)
			}
			if other := of[string(iqn)]; other != "" {
				return usage("%s.initiators[%d]: %s is host %q's already", at, k, iqn, other)
			}
			h.Initiators[k], of[string(iqn)] = string(iqn), h.Name
		}
	}
	return nil
}

// hosts are initiators by their hosts' names.
func (c *Config) hosts() map[string][]string {
	m := map[string][]string{}
	for _, h := range c.Hosts {
		m[h.Name] = h.Initiators
	}
	return m
}

// thisHost is as which this host logs in, or "" if that can't be told.
func thisHost(log *slog.Logger) string {
	name, err := hostInitiator(initiatorFile)
	if err != nil {
		log.Warn("as which initiator this host logs in is not known", "error", err)
	}
	return string(name)
}
