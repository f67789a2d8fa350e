//! The server side of the plugin's requests.
